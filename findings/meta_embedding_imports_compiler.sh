#!/usr/bin/env bash
# An embedding on the meta device imports PyTorch's compiler, a linear layer there does not.
#
# Models are built on the meta device so that nothing is drawn and nothing is held before the weights come. An
# embedding draws from a normal distribution as it is made, and on the meta device that is a decomposition, which
# brings torch._dynamo, sympy and some 800 modules into the process: about a second of start-up for a layer of four
# rows, in every process that builds a class-conditional model or a text encoder. What is drawn uniformly (linear
# layers, convolutions) brings nothing. Made from an empty table (`nn.Embedding.from_pretrained`) it brings nothing
# either.
#
# Seen with torch 2.13.0. Exits with 1 and CHANGED if that is no longer so.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0"

brings() {
    "$folder/env/bin/python" -W ignore - "$1" <<'PY'
import sys
import time

import torch

before, start = len(sys.modules), time.process_time()
made = eval(sys.argv[1], {"nn": torch.nn, "torch": torch})
spent = time.process_time() - start
brought = "torch._dynamo" in sys.modules
print(f"{sys.argv[1]}: {len(sys.modules) - before} modules, {spent:.2f} s of a core", file=sys.stderr)
print("compiler" if brought else "nothing")
PY
}

failed=0
expect() {
    local found
    found=$(brings "$1")
    if [ "$found" != "$2" ]; then
        echo "CHANGED: $1 brings $found; it brought $2" >&2
        failed=1
    fi
}

echo "torch $("$folder/env/bin/python" -c 'import torch; print(torch.__version__)')"
expect 'nn.Embedding(4, 4, device="meta")' compiler
expect 'nn.Linear(4, 4, device="meta")' nothing
expect 'nn.Embedding(4, 4)' nothing
expect 'nn.Embedding.from_pretrained(torch.empty(4, 4, device="meta"))' nothing
exit "$failed"
