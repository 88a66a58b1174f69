#!/bin/sh
# Makes the missing secrets of docker-compose.yml in the folder secrets/, or in the folder of the
# argument. All users can read the files, because the users in the containers are other users; only
# the owner can enter the folder.
set -eu
folder=${1:-$(dirname "$0")/../secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
umask 022
for name in redis_password operator_token view_token grafana_password; do
    [ -s "$name" ] || od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' >"$name"
done
printf 'operator:operate:%s\nprometheus:view:%s\n' "$(cat operator_token)" "$(cat view_token)" >ops_tokens
