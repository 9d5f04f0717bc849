#!/usr/bin/env bash
# Draws docs/report.png: the page that compare writes of the quickstart's three settings, three seeds each, photographed by
# a browser. Needs chromium; BROWSER names another program with its flags. Run it from the repository; runs go to runs/report.
set -e -o pipefail
python=${PYTHON:-.venv/bin/python}
out=${1:-docs/report.png}
runs=runs/report
train() { "$python" -m fedjax8.train --seeds=0,1,2 "$@"; }
train --config=digits_float32 --workdir=$runs/float32 --name=float32
train --workdir=$runs/fp8 --name=FP8
train --config=digits_float32 --config.uplink.name=uniform --config.uplink.bits=4 \
    --config.algorithm.payload=update --config.downlink.name=fp8 --workdir=$runs/4bit --name="4 bits up"
"$python" -m fedjax8.compare $runs/float32 $runs/fp8 $runs/4bit --html=$runs/page.html
# Plots are drawn within the 10 seconds of the browser's own clock.
"${BROWSER:-chromium}" --headless --no-sandbox --hide-scrollbars --window-size=1280,1075 --virtual-time-budget=10000 \
    --screenshot="$(realpath "$out")" "file://$(realpath $runs/page.html)"
