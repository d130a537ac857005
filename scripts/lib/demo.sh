#!/bin/bash
# What scripts/run shows. Runs where containerd answers and Sealock is installed: demo.sh IMAGE-ARCHIVE LOG [COMMAND...]
set -euo pipefail

archive=$1 log=$2
shift 2
if (($# == 0)); then
    # shellcheck disable=SC2016 # for the container's shell
    set -- sh -c 'echo "Hello from a microVM: $(nproc) CPU, $(grep MemTotal /proc/meminfo | tr -s " ")"; id'
fi
image=docker.io/library/busybox:latest

sealock() {
    ctr run --rm --runtime io.containerd.sealock.v2 "$image" "$@"
}

ctr image import "$archive" >/dev/null
printf 'host kernel:   %s\n' "$(uname -r)"
printf 'guest kernel:  %s\n' "$(sealock demo-uname uname -r </dev/null)"
printf '$ ctr run --rm --runtime io.containerd.sealock.v2 %s demo %s\n' "$image" "${*@Q}"
status=0
sealock demo "$@" || status=$?
printf 'exit code:     %s\n\n' "$status"
command sealock trace --log "$log"
exit "$status"
