#!/bin/sh
# Makes the namespace and registers the search attributes; safe to run at every start.
set -eu

namespace=${TEMPORAL_NAMESPACE:-default}

tries=0
until temporal operator cluster health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "Temporal at $TEMPORAL_ADDRESS does not become healthy" >&2; exit 1; }
    sleep 1
done

temporal operator namespace describe --namespace "$namespace" >/dev/null 2>&1 ||
    temporal operator namespace create --namespace "$namespace" --retention 30d

# A new namespace takes some seconds to be known everywhere.
tries=0
for attribute in EnvironmentStatus EnvironmentHost; do
    until temporal operator search-attribute list --namespace "$namespace" 2>/dev/null | grep -qw "$attribute"; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "the search attribute $attribute cannot be registered" >&2; exit 1; }
        temporal operator search-attribute create --namespace "$namespace" --name "$attribute" --type Keyword || true
        sleep 1
    done
done
echo "namespace $namespace is ready"
