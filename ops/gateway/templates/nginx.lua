{{ clients_code }}

-- The variable by which nginx counts the calls of a client with a limit.
local share_of_client = {
{% for client, share in shares %}
  ["{{ client }}"] = "{{ share }}",
{% endfor %}
}
{% if shard_count %}

-- By version: the number of each shard's upstream. nginx must find a comment or a string within 4096 bytes.
local places = {
{% for version, numbers in places.items() %}
  ["{{ version }}"] = {
{% for line in numbers | batch(64) %}
    {{ line | join(", ") }}, --
{% endfor %}
  },
{% endfor %}
}
{% endif %}

function paywarden_check({{ "version, upstream" if shard_count else "" }})
  local variables = ngx.var
  local traceparent = variables.http_traceparent
  if traceparent and is_traceparent(traceparent) then variables.paywarden_traceparent = traceparent end
  local certificate
  if variables.ssl_client_verify == "SUCCESS" then certificate = variables.ssl_client_s_dn end
  local client = client_for(variables.http_authorization, certificate)
  if not client then return ngx.exit(401) end
  variables.paywarden_client = client
  local share = share_of_client[client]
  if share then variables[share] = client end
  local route = variables.http_x_paywarden_route
  if route and not is_route(route) then return ngx.exec("@wrong_route") end
{% if shard_count %}
  if route then
    local shard = tonumber(string.sub(route, 1, {{ route_digits_of_shard }}), 16) % {{ shard_count }}
    upstream = upstream .. "_" .. places[version][shard + 1]
  end
  variables.paywarden_upstream = upstream
  variables.paywarden_second_try = upstream .. "_second_try"
{% endif %}
  variables.paywarden_token = host_token_of[client]
end
