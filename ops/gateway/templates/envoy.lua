{{ clients_code }}

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  local traceparent = headers:get("traceparent")
  if traceparent then
    if is_traceparent(traceparent) then
      metadata:set("paywarden", "traceparent", traceparent)
    else
      headers:remove("traceparent")
    end
  end
  metadata:set("paywarden", "request_id", headers:get("x-request-id") or "")
  local certificate
  local connection = handle:streamInfo():downstreamSslConnection()
  if connection and connection:peerCertificatePresented() and connection:peerCertificateValidated() then
    certificate = connection:subjectPeerCertificate()
  end
  local jwt = metadata:get("envoy.filters.http.jwt_authn")
  local payload = jwt and jwt["paywarden"]
  local client = client_for(headers:get("authorization"), certificate, payload and payload["iss"], payload and payload["sub"])
  if not client then
    handle:respond({[":status"] = "401", ["www-authenticate"] = "Bearer"}, "")
    return
  end
  metadata:set("paywarden", "client", client)
  local route = headers:get("{{ route_header }}")
  if route and not is_route(route) then
{% if kind == "grpc" %}
    handle:respond({[":status"] = "400", ["grpc-status"] = "{{ wrong_route.grpc_status }}"}, [[{{ route_header }}: {{ wrong_route.message }}]])
{% else %}
    handle:respond({[":status"] = "400", ["content-type"] = "application/json"}, [[{{ wrong_route.body }}]])
{% endif %}
    return
  end
  headers:replace("authorization", "Bearer " .. host_token_of[client])
end
