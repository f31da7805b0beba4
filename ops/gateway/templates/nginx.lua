{{ clients_code }}

function paywarden_check()
  local variables = ngx.var
  local traceparent = variables.http_traceparent
  if traceparent and is_traceparent(traceparent) then variables.paywarden_traceparent = traceparent end
  local certificate
  if variables.ssl_client_verify == "SUCCESS" then certificate = variables.ssl_client_s_dn end
  local client = client_for(variables.http_authorization, certificate)
  if not client then return ngx.exit(401) end
  variables.paywarden_client = client
  local route = variables.http_x_paywarden_route
  if route and not is_route(route) then return ngx.exec("@wrong_route") end
  variables.paywarden_token = host_token_of[client]
end
