"""The fields of an access log's line, the same on both targets. A caller can fill no field with a card.

    {"time":"2026-11-27T12:00:00.123Z","client":"checkout","route":"v1/score","status":200,"ms":1,"host":"10.0.0.1:8080",
     "request_id":"…","traceparent":"00-…-01","request_bytes":211,"answer_bytes":240,"why":"-"}

The route's name stands for the path, because a caller chooses the path. A traceparent stands there only in its right
form.
"""

from __future__ import annotations

REQUEST_ID_STATE = "paywarden.request_id"
"""Where Envoy keeps the request id, which hosts do not get."""

ENVOY_FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "client": "%DYNAMIC_METADATA(paywarden:call:client)%",
    "route": "%ROUTE_NAME%",
    "status": "%RESPONSE_CODE%",
    "ms": "%DURATION%",
    "host": "%UPSTREAM_HOST%",
    "request_id": f"%FILTER_STATE({REQUEST_ID_STATE}:PLAIN)%",
    "traceparent": "%DYNAMIC_METADATA(paywarden:call:traceparent)%",
    "request_bytes": "%BYTES_RECEIVED%",
    "answer_bytes": "%BYTES_SENT%",
    "why": "%RESPONSE_FLAGS%",
}
"""Envoy's words for them. `why` has its response flags."""

NGINX_FIELDS = {
    "time": "$time_iso8601",
    "client": "$paywarden_client",
    "route": "$paywarden_route_name",
    "status": "$status",
    "ms": "$request_time",
    "host": "$upstream_addr",
    "request_id": "$request_id",
    "traceparent": "$paywarden_traceparent",
    "request_bytes": "$request_length",
    "answer_bytes": "$body_bytes_sent",
    "why": "$upstream_status",
}
"""nginx's. `ms` is in seconds with three digits there; `why` has the status of each host that was asked."""
