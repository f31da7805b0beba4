-- Who calls: the same code in Envoy and nginx. Made by `paywarden gateway render`.
local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit

-- SHA-256 of an API key -> client; subject of a certificate -> client; issuer, newline, subject of a JWT -> client.
local client_of_key = {
{% for key, client in keys %}
  ["{{ key }}"] = "{{ client }}",
{% endfor %}
}
local client_of_certificate = {
{% for subject, client in certificates %}
  ["{{ subject }}"] = "{{ client }}",
{% endfor %}
}
local client_of_jwt = {
{% for issuer, subject, client in jwts %}
  ["{{ issuer }}\n{{ subject }}"] = "{{ client }}",
{% endfor %}
}
-- What the hosts know each client by.
local host_token_of = {
{% for client, token in tokens %}
  ["{{ client }}"] = "{{ token }}",
{% endfor %}
}

-- SHA-256 (FIPS 180-4).
local round_words, start_words = {}, {}
do
  local function fraction(root) return tobit(math.floor((root - math.floor(root)) * 4294967296)) end
  local found, number = 0, 2
  while found < 64 do
    local is_prime = true
    for divisor = 2, math.floor(math.sqrt(number)) do
      if number % divisor == 0 then is_prime = false break end
    end
    if is_prime then
      found = found + 1
      round_words[found] = fraction(number ^ (1 / 3))
      if found <= 8 then start_words[found] = fraction(math.sqrt(number)) end
    end
    number = number + 1
  end
end

local KEY_BYTES_MAX = 256
local words = {}

local function sha256(text)
  local zeros = (55 - #text) % 64
  local bits = #text * 8
  text = text .. "\128" .. string.rep("\0", zeros + 4)
    .. string.char(band(rshift(bits, 24), 255), band(rshift(bits, 16), 255), band(rshift(bits, 8), 255), band(bits, 255))
  local h1, h2, h3, h4, h5, h6, h7, h8 = unpack(start_words)
  for block = 1, #text, 64 do
    for index = 0, 15 do
      local b1, b2, b3, b4 = string.byte(text, block + index * 4, block + index * 4 + 3)
      words[index] = tobit(b1 * 16777216 + b2 * 65536 + b3 * 256 + b4)
    end
    for index = 16, 63 do
      local w15, w2 = words[index - 15], words[index - 2]
      local s0 = bxor(ror(w15, 7), ror(w15, 18), rshift(w15, 3))
      local s1 = bxor(ror(w2, 17), ror(w2, 19), rshift(w2, 10))
      words[index] = tobit(words[index - 16] + s0 + words[index - 7] + s1)
    end
    local a, b, c, d, e, f, g, h = h1, h2, h3, h4, h5, h6, h7, h8
    for index = 0, 63 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local choice = bxor(band(e, f), band(bnot(e), g))
      local t1 = tobit(h + s1 + choice + round_words[index + 1] + words[index])
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local majority = bxor(band(a, b), band(a, c), band(b, c))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + s0 + majority)
    end
    h1, h2, h3, h4 = tobit(h1 + a), tobit(h2 + b), tobit(h3 + c), tobit(h4 + d)
    h5, h6, h7, h8 = tobit(h5 + e), tobit(h6 + f), tobit(h7 + g), tobit(h8 + h)
  end
  return bit.tohex(h1) .. bit.tohex(h2) .. bit.tohex(h3) .. bit.tohex(h4)
    .. bit.tohex(h5) .. bit.tohex(h6) .. bit.tohex(h7) .. bit.tohex(h8)
end

-- Headers whose keys were right, so that each key is hashed once. Wrong ones are never kept, nor other spellings of a
-- right one: a caller could make thousands.
local seen_headers = {}

-- Returns the name of the client, or nil. `authorization` and `certificate` (a checked one's subject) may be nil;
-- `issuer` and `subject` are those of a checked JWT, or nil. All that is shown must be of one client.
local function client_for(authorization, certificate, issuer, subject)
  local by_certificate = certificate and client_of_certificate[certificate]
  if issuer then
    local by_jwt = client_of_jwt[issuer .. "\n" .. tostring(subject)]
    if by_certificate and by_jwt ~= by_certificate then return nil end
    return by_jwt
  end
  if authorization and authorization ~= "" then
    local by_key = seen_headers[authorization]
    if not by_key then
      local scheme, key = string.match(authorization, "^(%a+) +([^ ]+)$")
      if not key or string.lower(scheme) ~= "bearer" or #key > KEY_BYTES_MAX then return nil end
      by_key = client_of_key[sha256(key)]
      if authorization == "Bearer " .. key then seen_headers[authorization] = by_key end
    end
    if by_certificate and by_key ~= by_certificate then return nil end
    return by_key
  end
  return by_certificate
end

local function is_route(text)
  return #text == {{ route_digits }} and string.find(text, "^%x+$") ~= nil
end

-- Whether a text is a W3C traceparent. Anything else is dropped: it would stand in logs.
local function is_traceparent(text)
  return #text == 55 and string.find(text, "^%x%x%-%x+%-%x+%-%x%x$") ~= nil
    and string.sub(text, 36, 36) == "-"
end
