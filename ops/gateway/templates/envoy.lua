{{ clients_code }}
{% if shard_count %}

-- The hosts of each shard in the order in which they take its cards; any host, where all of these are away.
local host_names = { {%- for name in host_names %} "{{ name }}",{% endfor %} }
local orders = {
{% for order in orders %}
  { {%- for number in order %} {{ number }},{% endfor %} },
{% endfor %}
}
local fallbacks = {}
for shard, order in ipairs(orders) do
  local list = {}
  for place, number in ipairs(order) do list[place] = { host = host_names[number] } end
  list[#list + 1] = { any = "any" }
  fallbacks[shard] = list
end
{% endif %}

function envoy_on_request(handle)
  local headers, info = handle:headers(), handle:streamInfo()
  local traceparent = headers:get("traceparent")
  if traceparent and not is_traceparent(traceparent) then
    headers:remove("traceparent")
    traceparent = nil
  end
  local certificate, issuer, subject
{% if with_certificates %}
  local connection = info:downstreamSslConnection()
  if connection and connection:peerCertificatePresented() and connection:peerCertificateValidated() then
    certificate = connection:subjectPeerCertificate()
  end
{% endif %}
{% if with_jwts %}
  local jwt = info:dynamicMetadata():get("envoy.filters.http.jwt_authn")
  local payload = jwt and jwt["paywarden"]
  if payload then issuer, subject = payload["iss"], payload["sub"] end
{% endif %}
  local client = client_for(headers:get("authorization"), certificate, issuer, subject)
  -- Written once: each write of metadata costs as much as the search for the client.
  info:dynamicMetadata():set("paywarden", "call", { client = client, traceparent = traceparent })
  if not client then
    handle:respond({[":status"] = "401", ["www-authenticate"] = "Bearer"}, "")
    return
  end
  local route = headers:get("{{ route_header }}")
  if route and not is_route(route) then
{% if kind == "grpc" %}
    handle:respond({[":status"] = "400", ["grpc-status"] = "{{ wrong_route.grpc_status }}"}, [[{{ route_header }}: {{ wrong_route.message }}]])
{% else %}
    handle:respond({[":status"] = "400", ["content-type"] = "application/json"}, [[{{ wrong_route.body }}]])
{% endif %}
    return
  end
{% if shard_count %}
  if route then
    local shard = tonumber(string.sub(route, 1, {{ route_digits_of_shard }}), 16) % {{ shard_count }}
    info:dynamicMetadata():set("envoy.lb", "fallback_list", fallbacks[shard + 1])
  end
{% endif %}
  headers:replace("authorization", "Bearer " .. host_token_of[client])
end
