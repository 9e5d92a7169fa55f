# Installs what the demo and the tests need and a machine lacks. Source it: `. scripts/lib/install.sh`.
#
# need_redis, need_postgres, need_mariadb, need_chromium   a server's programs, a browser's, from the distribution, its service not started
# need_valkey DIR                           valkey-server on the path, or unpacked into DIR where the distribution has it in a later release only
# need_venv DIR PACKAGES...                 a Python virtual environment with these packages
# postgres_bin                              prints the folder of the newest PostgreSQL's programs
#
# Each does nothing, quickly, where everything is there; none touches the package lists before something is missing.
# PYTHON names the interpreter that environments are made from (python3).

_install_say() { printf '%s\n' "$*" >&2; }

_install_as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else _install_say "not root and no sudo: please run as root: $*"; return 1
  fi
}

# A Debian package starts its service as soon as it is installed, unless policy-rc.d forbids it: a server on the default
# port is not what anyone asked for. A policy that is already there is the machine's own and stays.
_install_packages() (
  if ! command -v apt-get >/dev/null; then
    _install_say "needs the packages $* and knows only apt-get: please install them"
    return 1
  fi
  _install_say "installing $* ..."
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap '_install_as_root rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    _install_as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy" || return
  fi
  apt="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
  # shellcheck disable=SC2086 # the words of $apt are meant to be split
  said=$({ _install_as_root $apt update && _install_as_root $apt install -y --no-install-recommends "$@"; } </dev/null 2>&1) ||
    { _install_say "$said"; return 1; }
)

_install_has() {
  local name
  for name in "$@"; do
    if command -v "$name" >/dev/null || [ -x "/usr/sbin/$name" ]; then return 0; fi
  done
  return 1
}

need_redis() { _install_has redis-server || _install_packages redis-server; }

# Debian 12 has it in its backports. The package is unpacked and not installed, and its lists are its own: what the machine
# gets from where is not this script's to change. The libraries that it needs are those of redis-server.
need_valkey() {
  local dir=$1 release apt
  if _install_has valkey-server || [ -x "$dir/usr/bin/valkey-server" ]; then return 0; fi
  release=$(. /etc/os-release 2>/dev/null && printf '%s' "${VERSION_CODENAME:-}")
  if [ "$release" != bookworm ]; then _install_packages valkey-server; return; fi
  _install_say "unpacking valkey-server ..."
  (
    mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" && cd "$dir/apt" || exit
    here=$PWD
    trap 'rm -rf "$here"' EXIT
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian %s-backports main\n' "$release" >sources.list
    apt=(apt-get -qq -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$here/lists"
      -o "Dir::Cache=$here" -o APT::Sandbox::User=root)
    { "${apt[@]}" update && "${apt[@]}" download valkey-server valkey-tools; } </dev/null >&2 || exit
    for package in *.deb; do dpkg-deb -x "$package" .. || exit; done
    ../usr/bin/valkey-server --version >/dev/null
  )
}

postgres_bin() {
  local bin newest=
  for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
    if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ]; then newest=$bin; fi
  done
  if [ -z "$newest" ] && command -v initdb >/dev/null; then newest=$(dirname "$(command -v initdb)"); fi
  [ -n "$newest" ] && printf '%s\n' "$newest"
}

need_postgres() { postgres_bin >/dev/null || _install_packages postgresql; }

# A browser without a window, for the page's test.
need_chromium() { { _install_has chromium && _install_has chromedriver; } || _install_packages chromium chromium-driver fonts-dejavu-core; }

need_mariadb() {
  if _install_has mariadbd mysqld && _install_has mariadb-install-db; then return 0; fi
  _install_packages mariadb-server
}

# The package that lets an interpreter make environments: Debian keeps it apart from Python itself.
_install_need_ensurepip() {
  local python=$1 package
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return 0; fi
  case $(command -v "$python") in
    /usr/bin/python3) package=python3-venv ;;
    *) package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') ;;
  esac
  _install_packages "$package" && "$python" -c 'import ensurepip, venv'
}

need_venv() {
  local dir=$1 python=${PYTHON:-python3} wanted
  shift
  command -v "$python" >/dev/null || _install_packages python3 python3-venv || return
  wanted=$("$python" -c 'import sys; print(sys.base_prefix, *sys.version_info[:3])') || return
  # The stamp says which interpreter and packages made the environment; it is written last.
  if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$wanted | $*" ] && [ -x "$dir/bin/python" ]; then return 0; fi
  mkdir -p "$(dirname "$dir")"
  (
    flock 9 # two scripts may want the same environment at once
    have=$(cat "$dir/.stamp" 2>/dev/null)
    if [ "$have" = "$wanted | $*" ]; then exit 0; fi
    if [ "${have%% |*}" != "$wanted" ]; then
      _install_need_ensurepip "$python" && "$python" -m venv --clear "$dir" || exit
    fi
    rm -f "$dir/.stamp"
    _install_say "installing $* for Python ..."
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 || exit
    printf '%s | %s\n' "$wanted" "$*" >"$dir/.stamp"
  ) 9>"$dir.lock"
}
