#!/usr/bin/env bash
# Builds bitnet and installs it into .venv beside this file. `./setup.sh --help` lists the commands.
# Works with bash 3.2 (macOS), from any folder, and again after an interruption.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/bitnet-stamp # what is installed; written last, so that an interrupted run is repeated
log=$root/build/setup.log
exec 3>&1 # the terminal, for a step that has something to say

hub_2b4t=microsoft/bitnet-b1.58-2B-4T

usage() {
  cat <<'HELP'
Usage: ./setup.sh [COMMAND] [ARGUMENTS]

  ./setup.sh              ask what to install, then install it into .venv
  ./setup.sh run [ARGS]   install the base and tell a story (ARGS go to `bitnet generate`)
  ./setup.sh test [ARGS]  install what the tests need and run them (ARGS go to pytest)
  ./setup.sh dev          install what developing needs: PyTorch, test and lint tools

Options without a command:
  --with torch            install PyTorch too: the reference engine and training
  --model NAME            stories (embedded, nothing to download), 2b4t (1.2 GB), or a Hub id owner/name
  --yes                   ask nothing; what no option answers gets its default
  -h, --help              show this

Environment:
  PYTHON                  the Python to use (3.10 or newer)
  CXX                     the C++17 compiler to use
  BITNET_TORCH_INDEX      on Linux, the index that has the CPU build of PyTorch (0.2 instead of several GB)
HELP
}

say() { printf 'bitnet: %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# Runs a step with its output in the log; on failure shows the log's end.
step() {
  local what=$1 begin=$SECONDS
  shift
  printf 'bitnet: %s ... ' "$what"
  # In a shell of its own, so that the trap below writes to the terminal and not into the log.
  if ("$@") >>"$log" 2>&1; then
    printf 'done (%d s)\n' $((SECONDS - begin))
    return
  fi
  printf 'failed\n'
  tail -n 25 "$log" >&2
  die "$what failed; the whole output is in $log" 1
}

# ---- what the machine must bring -------------------------------------------------------------------

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON does not run, or is older than Python 3.10"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 "$python"; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

find_compiler() {
  local candidate
  if [ -n "${CXX:-}" ]; then
    # CXX may carry arguments ("ccache g++"); only its program must exist.
    command -v "${CXX%% *}" >/dev/null 2>&1 || die "CXX=$CXX does not exist"
    echo "$CXX"
    return
  fi
  for candidate in c++ g++ clang++; do
    # On a Mac without its tools c++ exists and fails, hence --version.
    if "$candidate" --version >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

# Prints the command that installs the pieces named: any of python, venv, headers, compiler.
install_command() {
  local interpreter=$1 packages="" sudo="" piece manager
  shift
  [ "$(id -u)" = 0 ] || sudo="sudo "
  for manager in apt-get dnf pacman brew none; do
    command -v "$manager" >/dev/null 2>&1 && break
  done
  if [ "$(uname -s)" = Darwin ] && [ "$*" = compiler ]; then
    echo "xcode-select --install"
    return
  fi
  for piece in "$@"; do
    case $manager:$piece in
      apt-get:python) packages="$packages python3 python3-venv python3-dev" ;;
      apt-get:venv) packages="$packages $interpreter-venv" ;;
      apt-get:headers) packages="$packages $interpreter-dev" ;;
      apt-get:compiler) packages="$packages g++" ;;
      dnf:python) packages="$packages python3 python3-devel" ;;
      dnf:venv) packages="$packages $interpreter" ;;
      dnf:headers) packages="$packages $interpreter-devel" ;;
      dnf:compiler) packages="$packages gcc-c++" ;;
      pacman:compiler) packages="$packages gcc" ;;
      pacman:*) packages="$packages python" ;;
      brew:compiler) packages="$packages gcc" ;;
      brew:*) packages="$packages python@3.12" ;;
    esac
  done
  case $manager in
    apt-get) echo "${sudo}apt-get install$packages" ;;
    dnf) echo "${sudo}dnf install$packages" ;;
    pacman) echo "${sudo}pacman -S$packages" ;;
    brew) echo "brew install$packages" ;;
    *) echo "your system's package manager, for: $*" ;;
  esac
}

# Sets base_python and compiler, or stops with everything that is missing and one command for all of it.
check_machine() {
  local missing=() names=() interpreter
  base_python=$(find_python)
  compiler=$(find_compiler)
  interpreter=$(basename -- "${base_python:-python3}")
  if [ -z "$base_python" ]; then
    missing+=(python)
    names+=("Python 3.10 or newer")
  else
    if ! "$base_python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      missing+=(venv)
      names+=("Python's venv module")
    fi
    if ! "$base_python" -c 'import os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))' >/dev/null 2>&1; then
      missing+=(headers)
      names+=("Python's C headers")
    fi
  fi
  if [ -z "$compiler" ]; then
    missing+=(compiler)
    names+=("a C++17 compiler")
  fi
  [ ${#missing[@]} -gt 0 ] || return 0
  printf -v list '%s, ' "${names[@]}"
  die "not found: ${list%, }. Install with: $(install_command "$interpreter" "${missing[@]}")"
}

# ---- installing ------------------------------------------------------------------------------------

# Prints a hash of everything that makes a new build necessary. Python sources are not among it: the
# installation is editable and sees them as they are.
fingerprint() {
  "$python" - "$root" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
names = ["CMakeLists.txt", "pyproject.toml", "constraints.txt"]
files = [root / name for name in names] + sorted((root / "csrc").rglob("*"))
digest = hashlib.sha256(f"{root}\0{sys.version}".encode())
for path in files:
    if path.is_file():
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
print(digest.hexdigest())
PY
}

# Prints the extras that the stamp says are installed.
installed_extras() { [ -f "$stamp" ] && sed -n 's/^extras //p' "$stamp" || true; }

is_current() {
  local extra have
  [ -f "$stamp" ] && "$python" -c '' >/dev/null 2>&1 || return 1
  [ "$(sed -n 's/^source //p' "$stamp")" = "$(fingerprint)" ] || return 1
  have=" $(installed_extras) "
  for extra in "$@"; do
    case $have in *" $extra "*) ;; *) return 1 ;; esac
  done
}

pip_install() {
  "$python" -m pip install --disable-pip-version-check --no-input -c constraints.txt "$@"
}

# The package index gives Linux the CUDA build of PyTorch (several GB) under its plain version. The CPU
# build has the version's suffix "+cpu"; it comes from a local wheel where pip knows one, or from the index
# that BITNET_TORCH_INDEX names. Elsewhere the plain version is the CPU build. A fitting torch in .venv is kept.
install_torch() {
  local version
  version=$(sed -n 's/^torch==//p' constraints.txt)
  "$python" -c 'import sys; from importlib.metadata import version
sys.exit(version("torch").split("+")[0] != sys.argv[1])' "$version" 2>/dev/null && return
  if [ "$(uname -s)" != Linux ]; then
    pip_install "torch==$version"
  elif [ -n "${BITNET_TORCH_INDEX:-}" ]; then
    pip_install --extra-index-url "$BITNET_TORCH_INDEX" "torch==$version+cpu"
  elif pip_install --dry-run --no-deps "torch==$version+cpu"; then
    pip_install "torch==$version+cpu"
  else
    printf '\nbitnet: no CPU build of PyTorch at hand, taking the CUDA build (several GB); to avoid it, set\n' >&3
    printf "bitnet: BITNET_TORCH_INDEX to PyTorch's CPU index, which its installation page names\n" >&3
    pip_install "torch==$version"
  fi
}

# The build tools stand in .venv rather than in pip's throw-away environment: then a second build only
# compiles what changed.
install_build_tools() {
  local requirements=() line
  while IFS= read -r line; do
    requirements+=("$line")
  done < <("$python" -c 'import json, re
print(*json.loads(re.search(r"^requires = (\[.*\])", open("pyproject.toml").read(), re.M)[1]), sep="\n")')
  pip_install "${requirements[@]}" cmake ninja
}

# Version and home of a Python; an environment has those of the Python it was made with.
identity() {
  "$1" -c 'import sys; print(sys.version_info[:2], sys.base_prefix)' 2>/dev/null || true
}

# Whether PYTHON is set, and not to the one that .venv was made with.
asks_for_another_python() {
  [ -n "${PYTHON:-}" ] && [ -x "$python" ] && [ "$(identity "$PYTHON")" != "$(identity "$python")" ]
}

# Makes .venv hold bitnet with the extras named, besides those it already has.
ensure_installed() {
  local extra extras list
  cd -- "$root"
  if ! asks_for_another_python && is_current "$@"; then
    return
  fi
  extras=$(installed_extras)
  for extra in "$@"; do
    case " $extras " in *" $extra "*) ;; *) extras="${extras:+$extras }$extra" ;; esac
  done
  check_machine
  rm -f "$stamp"
  mkdir -p "$(dirname -- "$log")"
  : >"$log"
  # Scripts in .venv name their Python by its full path: a checkout that was moved gets a new one.
  if asks_for_another_python || ! "$python" -m pip --version >/dev/null 2>&1 ||
    ! grep -qF "$python" "$venv/bin/pip"; then
    step "creating .venv" "$base_python" -m venv --clear "$venv"
  fi
  say "using $("$python" --version) and $("${compiler%% *}" --version | head -n 1)"
  step "installing the build tools" install_build_tools
  case " $extras " in *" torch "*) step "installing PyTorch, CPU build" install_torch ;; esac
  list=${extras// /,}
  step "compiling and installing bitnet${extras:+ with extras: $list}" \
    pip_install --no-build-isolation -e ".${list:+[$list]}"
  printf 'source %s\nextras %s\n' "$(fingerprint)" "$extras" >"$stamp"
}

# ---- asking ----------------------------------------------------------------------------------------

ask() {
  local reply=""
  read -r -p "$1" reply || true
  echo "${reply:-$2}"
}

choose_torch() {
  case $(ask "Install PyTorch too, for training and the reference engine? ($torch_size) [y/N] " n) in
    y | Y | yes) extras=(torch train) ;;
  esac
}

choose_model() {
  cat <<'MENU'
Which model?
  1) stories   small English stories, embedded in the package: nothing to download
  2) 2b4t      BitNet b1.58 2B4T, chats: 1.2 GB to download, 2 GB of memory
  3) another   a model of the same architecture, by its Hub id: its page tells the size
MENU
  case $(ask "Model [1] " 1) in
    2 | 2b4t) model=2b4t ;;
    3 | another) model=$(ask "Hub id (owner/name) " stories) ;;
    *) model=stories ;;
  esac
}

install_interactively() {
  local extras=() model="" yes="" given=""
  local torch_size="about 0.2 GB to download, 0.9 GB on disk"
  while [ $# -gt 0 ]; do
    case $1 in
      --with)
        [ "${2:-}" = torch ] || die "--with takes: torch (found '${2:-}')"
        extras=(torch train)
        given=1
        shift 2
        ;;
      --model)
        [ -n "${2:-}" ] || die "--model takes: stories, 2b4t, or a Hub id owner/name"
        model=$2
        shift 2
        ;;
      --yes) yes=1 && shift ;;
      *) die "unknown option '$1'; ./setup.sh --help lists them" ;;
    esac
  done
  case $model in
    "" | stories | 2b4t | */*) ;;
    *) die "--model $model: takes stories, 2b4t, or a Hub id owner/name" ;;
  esac
  if [ -z "$yes" ] && { [ -z "$given" ] || [ -z "$model" ]; }; then
    [ -t 0 ] || die "no terminal to ask on; answer with --with torch, --model NAME and --yes"
    say "the base (engine, command line, Python API, story model) takes about 0.3 GB on disk"
    [ -n "$given" ] || choose_torch
    [ -n "$model" ] || choose_model
  fi
  ensure_installed ${extras[@]+"${extras[@]}"}
  fetch_model "${model:-stories}"
}

# Downloads a model through `bitnet info`, which also checks every tensor, and says how to use it.
fetch_model() {
  local id=$1 option=""
  [ "$id" != 2b4t ] || id=$hub_2b4t
  if [ "$id" != stories ]; then
    say "downloading $id (an interrupted download is resumed)"
    "$venv/bin/bitnet" info --json "$id" >/dev/null
    option=" --model $id"
  fi
  say "ready. Try: .venv/bin/bitnet generate$option \"Once upon a time\""
  [ "$id" = stories ] || say "       or: .venv/bin/bitnet chat$option"
}

# ---- commands --------------------------------------------------------------------------------------

trap 'printf "\nbitnet: interrupted; the same command goes on from here\n" >&2; exit 130' INT TERM

case ${1:-} in
  run)
    shift
    ensure_installed
    [ $# -gt 0 ] || set -- "Once upon a time" --max-tokens 300 --seed 3 # a long story, the same for everyone
    cd -- "$OLDPWD" # so that paths in the arguments mean what the user meant
    exec "$venv/bin/bitnet" generate "$@"
    ;;
  test)
    shift
    ensure_installed torch train dev
    exec "$python" -m pytest "$@"
    ;;
  dev)
    [ $# -eq 1 ] || die "dev takes no arguments (found '$2')"
    ensure_installed torch train dev
    ;;
  -h | --help) usage ;;
  "" | -*) install_interactively "$@" ;;
  *) die "unknown command '$1'; ./setup.sh --help lists them" ;;
esac
