#!/bin/sh
# Makes one Redis Cluster of the named hosts, or makes its nodes find each other again after their
# addresses have changed. Needs the password in /run/secrets/redis_password.
set -eu
REDISCLI_AUTH=$(cat /run/secrets/redis_password)
export REDISCLI_AUTH

# until_info NODE WORD: wait at most a minute until "cluster info" of the node has the word.
until_info() {
    tries=0
    until redis-cli -h "$1" cluster info | tr -d '\r' | grep -qx "$2"; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { echo "$1: not $2 within a minute" >&2; exit 1; }
        sleep 0.5
    done
}

for node; do
    for other; do
        address=$(getent hosts "$other" | cut -d ' ' -f 1)
        redis-cli -h "$node" cluster meet "$address" 6379
    done
done
for node; do
    until_info "$node" "cluster_known_nodes:$#"
done
if redis-cli -h "$1" cluster info | tr -d '\r' | grep -qx cluster_slots_assigned:0; then
    number=0
    for node; do
        first=$((16384 * number / $#))
        number=$((number + 1))
        redis-cli -h "$node" cluster addslotsrange "$first" "$((16384 * number / $# - 1))"
    done
fi
for node; do
    until_info "$node" cluster_state:ok
done
