#!/bin/sh
# Installs Chromium, in which the viewer is tested, where that needs no password and no browser is there; otherwise says
# what to type. Never fails and never asks: without it the browser tests are skipped, and say so.

installed() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" > /dev/null 2>&1 && return 0
    done
    [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ] || [ -x "/Applications/Chromium.app/Contents/MacOS/Chromium" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

installed && exit 0
if command -v apt-get > /dev/null 2>&1; then
    advice="sudo apt-get install chromium"
    quick="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"
    if as_root true 2> /dev/null; then
        echo "Installing Chromium with apt-get ..."
        apt="env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qq $quick"
        # An old package list often still serves, so a failed update is no reason to stop.
        as_root $apt update < /dev/null > /dev/null 2>&1
        as_root $apt install --no-install-recommends --yes chromium < /dev/null > /dev/null 2>&1
    fi
elif command -v brew > /dev/null 2>&1; then
    advice="brew install --cask chromium"
    echo "Installing Chromium with brew ..."
    HOMEBREW_NO_AUTO_UPDATE=1 NONINTERACTIVE=1 brew install --quiet --cask chromium < /dev/null > /dev/null 2>&1
elif command -v dnf > /dev/null 2>&1; then
    advice="sudo dnf install chromium"
elif command -v pacman > /dev/null 2>&1; then
    advice="sudo pacman -S chromium"
else
    advice="see https://www.chromium.org/getting-involved/download-chromium"
fi

if ! installed; then
    echo "Chromium and Chrome are missing, so the viewer's browser tests will be skipped; everything else runs."
    echo "To install one: $advice"
fi
exit 0
