# A word (4 bytes) is let pass, and shown: one kernel spills it on one architecture (backward_step of the vanilla
# RNN in float64, sm_100).
# Sums up what ptxas -v says of kernels: for each one by its plain name, how many variants there are, and the
# most registers and shared memory that one of them takes. Fails on spills and where no kernel was compiled.
/Compiling entry function/ {
  match($0, /'[^']+'/)
  mangled = substr($0, RSTART + 1, RLENGTH - 2)
  # _ZN8rnnfused4cuda12forward_stepI...: the last of the nested names.
  name = mangled
  sub(/^_ZN?/, "", name)
  while (match(name, /^[0-9]+/)) {
    n = substr(name, 1, RLENGTH)
    plain = substr(name, RLENGTH + 1, n)
    name = substr(name, RLENGTH + 1 + n)
  }
}
/bytes stack frame/ {
  match($0, /[0-9]+ bytes spill stores/)
  if (substr($0, RSTART) + 0 > 0) print "spills: " mangled ": " $0
  if (substr($0, RSTART) + 0 > 4) failed = 1
}
/Used [0-9]+ registers/ {
  variants[plain]++
  total++
  match($0, /Used [0-9]+/)
  used = substr($0, RSTART + 5, RLENGTH - 5) + 0
  if (used > registers[plain]) registers[plain] = used
  shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
  if (shared > memory[plain]) memory[plain] = shared
}
END {
  if (!total) {
    print "no kernel was compiled"
    exit 1
  }
  printf "%-28s %8s %10s %14s\n", "kernel", "variants", "registers", "shared bytes"
  for (plain in variants)
    printf "%-28s %8d %10d %14d\n", plain, variants[plain], registers[plain], memory[plain] | "sort"
  close("sort")
  print total " kernels, " (failed ? "SPILLS above" : "0 spills")
  exit failed
}
