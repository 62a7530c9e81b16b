#!/bin/sh
# Installs virnucpro into a virtual environment of its own. The Dockerfile, the Apptainer definition
# and the tests run this script.
#
#   containers/install.sh SOURCE DIRECTORY
#
# SOURCE is a checkout or a wheel. pip's variables choose the rest. For example, this takes torch for
# CPUs, which is much smaller than torch for GPUs:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu containers/install.sh . /opt/virnucpro
set -eu
source=$1
directory=$2

python3 -m venv "$directory"
"$directory/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "$source"
"$directory/bin/virnucpro" --version
