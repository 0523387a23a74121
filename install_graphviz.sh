#!/bin/sh
# Installs Graphviz, which draws the pictures, where that needs no password; otherwise says what to type.
# Never fails and never asks: everything but the pictures works without it.

installed() { command -v neato > /dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

installed && exit 0
if command -v apt-get > /dev/null 2>&1; then
    advice="sudo apt-get install graphviz"
    quick="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"
    if as_root true 2> /dev/null; then
        echo "Installing Graphviz with apt-get ..."
        apt="env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq $quick"
        # An old package list often still serves, so a failed update is no reason to stop.
        as_root $apt update < /dev/null > /dev/null 2>&1
        as_root $apt install --no-install-recommends --yes graphviz fonts-liberation < /dev/null > /dev/null 2>&1
    fi
elif command -v brew > /dev/null 2>&1; then
    advice="brew install graphviz"
    echo "Installing Graphviz with brew ..."
    HOMEBREW_NO_AUTO_UPDATE=1 NONINTERACTIVE=1 brew install --quiet graphviz < /dev/null > /dev/null 2>&1
elif command -v dnf > /dev/null 2>&1; then
    advice="sudo dnf install graphviz"
elif command -v pacman > /dev/null 2>&1; then
    advice="sudo pacman -S graphviz"
else
    advice="see https://graphviz.org/download"
fi

if ! installed; then
    echo "Graphviz is missing, so tracer cannot draw SVG, PNG or PDF; everything else works."
    echo "To install it: $advice"
fi
exit 0
