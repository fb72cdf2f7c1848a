#!/usr/bin/env bash
# Builds, checks, measures limits and speed, tests and sanitizes on this machine's GPU, in four and a half
# minutes (docs/gpu-suite.md):
#
#   bench/gpu_suite.sh [--sections build,smoke,limits,steps,bench,tests,sanitizers] [--rows key|all] [--dry-run]
#                      [--out DIR] [--python PYTHON] [--seconds N] [--commit NAME]
#
# --rows: of the benchmark, those that say most (the default) or every one. --out: for the JSON and the logs
# (default: $OUT, else build/gpu-suite). --seconds: for all of it (default 270). --commit: what to call the
# sources where git does not know them. --dry-run: all of it without a GPU. The exit status is 0 only if every
# section went well; one that did not does not stop the others.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
all=build,smoke,limits,steps,bench,tests,sanitizers
sections=$all rows=key out=${OUT:-} python=python3 total=270 dry=()

fail() {
  echo "gpu_suite: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=(--dry-run) && shift && continue ;;
    --help | -h) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
    --sections | --rows | --out | --python | --seconds | --commit) [ $# -gt 1 ] || fail "$1: expected a value, got none" ;;
    *) fail "expected an option (--help names them), got $1" ;;
  esac
  case $1 in
    --sections) sections=$2 ;;
    --rows) rows=$2 ;;
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
[[ $rows =~ ^(key|all)$ ]] || fail "--rows: expected key or all, got $rows"
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

# What each section may take, in seconds of the default 270; of other totals, and of fewer sections, in proportion.
declare -A share=([build]=45 [smoke]=20 [limits]=30 [steps]=15 [bench]=70 [tests]=55 [sanitizers]=35)
reserve=10  # seconds, for the report
grace=8     # that a section may take to end
status=0

# call NAME SECONDS: the section ends itself in time; if it hangs, it is ended.
call() {
  timeout -k 5 $(($2 + grace)) "$python" -m bench.gpu "$1" --parts "$parts" --seconds "$2" --rows "$rows" \
    "${dry[@]}" >"$out/$1.log" 2>&1
}

report() {
  "$python" -m bench.gpu report --parts "$parts" --out "$out" "${dry[@]}" "$@"
}

# sum SECTION...: of their shares.
sum() {
  local section of=0
  for section in "$@"; do of=$((of + share[$section])); done
  echo $of
}

# limit_of NAME LEFT LATER...: seconds for the section. It may take what those before it did not, but leaves the
# later ones their shares; where one before it took too long, the last ones have less. Nothing runs without the
# build, so that one may take twice its share.
limit_of() {
  local name=$1 left=$2 available=$((total - reserve - grace)) own later
  shift 2
  own=$((share[$name] * available / of_all)) later=$(($(sum "$@") * available / of_all))
  [ "$name" != build ] || own=$((2 * own))
  [ $((left - later)) -le $own ] || own=$((left - later))
  [ $own -le "$left" ] || own=$left
  echo $own
}

# one NAME LATER...: runs the section and notes how it went.
one() {
  local name=$1 start=$SECONDS result limit code
  limit=$(limit_of "$name" $((total - SECONDS - reserve - grace)) "${@:2}")
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
read -ra order <<<"${sections//,/ }"
of_all=$(sum "${order[@]}")
for i in "${!order[@]}"; do
  one "${order[@]:i}"
  # What there is so far is safe, whatever becomes of the rest.
  report --quiet || status=1
done
echo
report || status=1
exit $status
