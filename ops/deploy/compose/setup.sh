#!/bin/sh
# Makes secrets/ and gateway/ beside this file, once: ./setup.sh [HOSTNAME]. What is there already stays as it is.
#
# PAYWARDEN says how a command of Paywarden is run: the image by default.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
host=${1:-localhost}
paywarden() {
    if [ -n "${PAYWARDEN:-}" ]; then
        (cd "$here/gateway" && $PAYWARDEN "$@")
    else
        docker run --rm --network none --volume "$here/gateway:/gateway:ro" --workdir /gateway --user "$(id -u):$(id -g)" \
            "${PAYWARDEN_IMAGE:-paywarden:1.0.0}" "$@"
    fi
}

mkdir -p "$here/secrets" "$here/gateway"
[ -e "$here/secrets/identity.key" ] || openssl rand -hex 16 > "$here/secrets/identity.key"
[ -e "$here/secrets/grafana_password" ] || openssl rand -base64 18 > "$here/secrets/grafana_password"
[ -e "$here/secrets/lead.pem" ] || openssl genpkey -algorithm ed25519 -out "$here/secrets/lead.pem"
[ -e "$here/gateway/secret" ] || openssl rand -hex 32 > "$here/gateway/secret"
if [ ! -e "$here/gateway/server.pem" ]; then
    # For a trial. In production it is one that callers trust.
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj "/CN=$host" \
        -addext "subjectAltName=DNS:$host" -keyout "$here/gateway/server.key" -out "$here/gateway/server.pem" 2>/dev/null
fi
if [ ! -e "$here/gateway/gateway.toml" ]; then
    key=$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')
    hash=$(printf %s "$key" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
    sed "s/KEY_SHA256/$hash/" "$here/gateway.toml" > "$here/gateway/gateway.toml"
    echo "the key of the client \"checkout\", which is stored nowhere: $key"
fi
paywarden gateway render --target hosts > "$here/secrets/tokens"
# `docker run` sees the folder under another name: the files of the configuration have the names that Envoy's container sees.
paywarden gateway render --target envoy --elsewhere | sed "s#\"/gateway/#\"/etc/paywarden-gateway/#g; s#\"$here/gateway/#\"/etc/paywarden-gateway/#g" > "$here/gateway/envoy.json.new"
mv "$here/gateway/envoy.json.new" "$here/gateway/envoy.json"
# Grafana's container has a user of its own. The folder keeps others on this machine out.
chmod 0644 "$here/secrets/grafana_password"
# The user of all other containers.
if [ "$(id -u)" = 0 ]; then
    chown -R 10001:10001 "$here/secrets" "$here/gateway"
else
    echo "now let the containers read them: sudo chown -R 10001:10001 $here/secrets $here/gateway" >&2
fi
echo "made: $here/secrets, $here/gateway"
