#!/usr/bin/env bash
# Builds, tests, sanitizes, measures limits and benchmarks on this machine's GPU, in nine minutes
# (docs/gpu-suite.md):
#
#   bench/gpu_suite.sh [--sections build,tests,sanitizers,limits,bench] [--dry-run] [--out DIR]
#                      [--python PYTHON] [--seconds N] [--commit NAME]
#
# --out: for the JSON and the logs (default: $OUT, else build/gpu-suite). --seconds: for all of it (default
# 540). --commit: what to call the sources where git does not know them. --dry-run: all of it without a GPU.
# The exit status is 0 only if every section went well; one that did not does not stop the others.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
all=build,tests,sanitizers,limits,bench
sections=$all out=${OUT:-} python=python3 total=540 dry=()

fail() {
  echo "gpu_suite: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=(--dry-run) && shift && continue ;;
    --help | -h) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
    --sections | --out | --python | --seconds | --commit) [ $# -gt 1 ] || fail "$1: expected a value, got none" ;;
    *) fail "expected an option (--help names them), got $1" ;;
  esac
  case $1 in
    --sections) sections=$2 ;;
    --out) out=$2 ;;
    --python) python=$2 ;;
    --seconds) total=$2 ;;
    --commit) export RNNFUSED_COMMIT=$2 ;;
  esac
  shift 2
done
for section in ${sections//,/ }; do
  [[ ,$all, == *,$section,* ]] || fail "--sections: expected some of $all, got $section"
done
[[ $total =~ ^[0-9]+$ ]] || fail "--seconds: expected a whole number, got $total"
command -v "$python" >/dev/null || fail "--python: $python was not found"

# A dry run builds on whatever machine there is; it proves the way, not the time.
[ ${#dry[@]} -eq 0 ] || total=$((total * 10))
cd "$root" || exit 2
out=${out:-build/gpu-suite}
mkdir -p "$out" build && out=$(cd "$out" && pwd) || fail "--out: cannot make $out"
parts=$(mktemp -d "$root/build/gpu-parts.XXXXXX") || fail "cannot write under $root/build"
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# What each section may take, in percent of all; the bench has what the others leave.
declare -A percent=([build]=30 [tests]=22 [sanitizers]=15 [limits]=8 [bench]=100)
reserve=10  # seconds, for the report
status=0

# call NAME SECONDS: the section ends itself in time; if it hangs, it is ended.
call() {
  timeout -k 5 $(($2 + 8)) "$python" -m bench.gpu "$1" --parts "$parts" --seconds "$2" "${dry[@]}" \
    >"$out/$1.log" 2>&1
}

report() {
  "$python" -m bench.gpu report --parts "$parts" --out "$out" "${dry[@]}" "$@"
}

one() {
  local name=$1 start=$SECONDS result left limit code
  left=$((total - SECONDS - reserve - 8))
  limit=$((total * percent[$name] / 100))
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    result="no time" code=1
  else
    call "$name" "$limit"
    code=$?
    case $code in
      0) result=ok ;;
      124 | 137) result="timed out" ;;
      *) result=failed ;;
    esac
  fi
  printf '%s\t%s\t%s\n' "$name" "$result" $((SECONDS - start)) >>"$parts/sections.tsv"
  echo "gpu_suite: $name: $result, $((SECONDS - start)) s"
  [ "$code" -eq 0 ] && return
  status=1
  [ -f "$out/$name.log" ] && tail -n 12 "$out/$name.log" | cut -c1-240 | sed 's/^/  | /'
}

if ! call device 90; then
  cat "$out/device.log" >&2
  fail "no device to run on; --dry-run needs none"
fi
for section in ${sections//,/ }; do
  one "$section"
  # What there is so far is safe, whatever becomes of the rest.
  report --quiet || status=1
done
echo
report || status=1
exit $status
