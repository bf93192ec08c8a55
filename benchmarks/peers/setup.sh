#!/bin/sh
# The published package in an environment of its own, to be measured against.
#   sh benchmarks/peers/setup.sh DIR     then     SCGPT_PEER_PYTHON=DIR/bin/python python benchmarks/bench_binning.py
# scgpt 0.2.4 pins versions that have no wheels for a current Python, so it is installed without its dependencies and
# given what it imports; torchtext, no longer built for current torch, is a stand-in of a few lines.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
where=${1:?usage: setup.sh DIR}
"${PYTHON:-python3}" -m venv "$where"
"$where/bin/pip" install "torch==2.13.0"
"$where/bin/pip" install scanpy numba pandas tqdm seaborn networkx ipython requests datasets
"$where/bin/pip" install --no-deps "scgpt==0.2.4"
site=$("$where/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
cp -R "$here/torchtext_standin/torchtext" "$site/"
"$where/bin/python" -c "import scgpt; print('scgpt', scgpt.__version__, 'is ready')"
