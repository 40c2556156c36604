"""The shell scripts that run on the far side, in POSIX sh: what is there is not known before they run.

Each works with `directory`, Longarm's, and more variables that its first comment names. They are read from standard
input, so that nothing of them is on a command line.
"""

# Whether process $1 is Longarm's. A zombie has no command line: in a container nobody may ever reap it
_IS_OURS = """\
is_ours() {
  [ -n "$1" ] && tr '\\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -q longarm_service
}
state_of() { sed -n "s/^$1=//p" "$directory/run/state" 2>/dev/null || :; }
"""

# wanted_python. Prints key=value lines
LOOK = (
    _IS_OURS
    + """\
say() { printf '%s=%s\\n' "$1" "$2"; }
case $directory in
  '~') directory=$HOME ;;
  '~/'*) directory=$HOME/${directory#'~/'} ;;
  /*) ;;
  *) directory=$HOME/$directory ;;
esac
say directory "$directory"
say system "$(uname -s)"
say machine "$(uname -m)"

# A file: a directory of this name is Longarm's own, in a home directory that is not
if [ -f "$directory/.longarm" ]; then
  say marked yes
  # The last that is made
  if [ -d "$directory/cache" ]; then say content ours; fi
elif [ -n "$(ls -A "$directory" 2>/dev/null)" ]; then say content foreign
fi
place=$directory
while [ ! -d "$place" ]; do place=$(dirname "$place"); done
if [ -w "$place" ]; then say writable yes; fi
df -Pk "$place" 2>/dev/null | { read -r _; read -r _ _ _ free _ && say free_kib "$free"; } || :

if command -v nvidia-smi >/dev/null 2>&1; then
  if gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1); then
    printf '%s\\n' "$gpus" | while IFS= read -r gpu; do say gpu "$gpu"; done
  else
    say gpu_trouble "$(printf '%s' "$gpus" | head -n 1)"
  fi
fi

systemd=no
if [ -d /run/systemd/system ]; then
  if [ "$(id -u)" = 0 ]; then systemd=system
  elif [ -e "/var/lib/systemd/linger/$(id -un)" ] && systemctl --user show-environment >/dev/null 2>&1; then
    systemd=user
  fi
fi
say systemd "$systemd"

# A login without a terminal has a short PATH: conda, uv and pyenv are looked for where they install
probe='
import importlib.metadata, importlib.util, json, os, sys
try: torch = importlib.metadata.version("torch")
except Exception: torch = ""
complete = all(importlib.util.find_spec(name) for name in ("ssl", "venv", "ensurepip"))
print("python=" + json.dumps({"path": sys.argv[1], "real": os.path.realpath(sys.executable), "prefix": sys.prefix,
    "version": list(sys.version_info[:3]), "complete": complete, "torch": torch}))'
for python in "$wanted_python" python3.12 python3.13 python3 python \\
    /venv/main/bin/python "$HOME"/miniconda3/bin/python "$HOME"/miniforge3/bin/python "$HOME"/anaconda3/bin/python \\
    /opt/conda/bin/python /opt/miniconda3/bin/python /opt/miniforge3/bin/python \\
    "$HOME"/*conda3/envs/*/bin/python "$HOME"/miniforge3/envs/*/bin/python /opt/*conda*/envs/*/bin/python \\
    /usr/local/bin/python3.1[2-9] /usr/bin/python3.1[2-9] "$HOME"/.local/bin/python3.1[2-9] \\
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/*/bin/python3 \\
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
  [ -n "$python" ] || continue
  path=$(command -v "$python" 2>/dev/null) || continue
  "$path" -c "$probe" "$path" 2>/dev/null || :
done

environment=$directory/venv
if "$environment/bin/python" -c 'import pip' >/dev/null 2>&1; then say environment works; fi
for stamp in base packages longarm; do
  if [ -r "$environment/.$stamp" ]; then say "$stamp" "$(cat "$environment/.$stamp")"; fi
done
for policy in "$directory"/policies/*/; do
  policy=$(basename "$policy")
  case $policy in '*' | *.part) ;; *) say policy "$policy" ;; esac
done

# Listening, established or being so: a connection's own port cannot be bound either
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ local _ socket _; do
  case $socket in 0A | 01 | 02) say taken_port "$((0x${local##*:}))" ;; esac
done

if [ -r "$directory/run/state" ]; then
  while IFS='=' read -r key value; do say "run_$key" "$value"; done <"$directory/run/state"
  if is_ours "$(state_of supervisor)"; then say supervisor_alive yes; fi
  if is_ours "$(state_of service)"; then
    say service_alive yes
    if [ -r "$directory/run/announce.json" ]; then
      say announce "$(cat "$directory/run/announce.json")"
      say readiness "$("$environment/bin/python" -c '
import json, sys, urllib.error, urllib.request
port = json.load(open(sys.argv[1]))["metrics_port"]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try: answer = opener.open(f"http://127.0.0.1:{port}/readyz", timeout=5)
except urllib.error.HTTPError as error: answer = error
print(answer.read().decode().strip())' "$directory/run/announce.json" 2>/dev/null || :)"
    fi
  fi
fi
"""
)

# who, held (what to say), lease (seconds). Says `held` as soon as nobody else works in the directory, and then holds a
# lock until its input ends. The lock is on the marker. Who holds it stands in there, and its age is that of the last
# sign of life: a machine does not learn that a laptop is gone whose network went silent
HOLD = """\
umask 077
# The server's process for this connection: with it ends everything that the connection runs
connection=$$
while [ "$connection" -gt 1 ]; do
  case $(cat "/proc/$connection/comm" 2>/dev/null || :) in sshd* | dropbear*) break ;; esac
  connection=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$connection/status" 2>/dev/null || :)
  connection=${connection:-1}
done
marker=$directory/.longarm
told=
while command -v flock >/dev/null 2>&1; do
  mkdir -p "$directory"
  exec 9>>"$marker"
  silent=0 seen=
  until flock -n 9; do
    sleep 1
    # Nothing stands there if the disk is full
    its_connection=0 its_words='nobody knows who'
    { read -r its_connection its_words <"$marker"; } 2>/dev/null || :
    if [ -z "$told" ]; then
      echo "Another longarm-edge is at work in $directory: $its_words. Waiting for it."
      told=yes
    fi
    beat=$(stat -c %Y "$marker" 2>/dev/null) || continue
    if [ "$beat" = "$seen" ]; then silent=$((silent + 1)); else silent=0 seen=$beat; fi
    if [ "$silent" -ge "$lease" ] && [ "${its_connection:-0}" -gt 1 ]; then
      echo "It gave no sign of life for $silent s: its connection is ended."
      kill "$its_connection" || :
      silent=0
    fi
  done
  # Whoever had it may have removed the directory
  if [ "$marker" -ef /proc/self/fd/9 ]; then break; fi
done
{ printf '%s %s\\n' "$connection" "$who, since $(date '+%F %T %Z')" >"$marker"; } 2>/dev/null || :
echo "$held"
while :; do sleep 3600; done
"""

MAKE_DIRECTORY = """\
umask 077
mkdir -p "$directory"
: >>"$directory/.longarm"
cd "$directory"
mkdir -p run logs wheels policies
mkdir -p cache
"""

# python, reuse (yes or no), base
MAKE_ENVIRONMENT = """\
cd "$directory"
rm -f venv/.base
rm -rf venv
"$python" -m venv --without-pip venv
# By itself, for venv keeps to itself why it fails
venv/bin/python -I -m ensurepip --upgrade --default-pip
if [ "$reuse" = yes ]; then
  # Unlike --system-site-packages this also reaches what is in a virtual or conda environment
  site=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c '
import os, sys
for path in sys.path:
    if os.path.basename(path) in ("site-packages", "dist-packages"): print(path)' >"$site/reused.pth"
fi
printf '%s\\n' "$base" >venv/.base
"""

# packages, hashed (yes or no), torch (requirements, one word each, from torch_index_url; may be empty), torch_index_url
INSTALL_PACKAGES = """\
cd "$directory"
rm -f venv/.packages venv/.longarm
pip() { venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }
if [ -n "$torch_index_url" ]; then
  (
    export PIP_INDEX_URL="$torch_index_url" PIP_EXTRA_INDEX_URL=
    pip install --progress-bar off $torch
  )
fi
if [ "$hashed" = yes ]; then
  pip install --progress-bar off --no-deps --require-hashes -r wheels/requirements.txt
else
  pip install --progress-bar off -r wheels/requirements.txt
fi
rm -rf cache/pip
printf '%s\\n' "$packages" >venv/.packages
"""

# longarm
INSTALL_LONGARM = """\
cd "$directory"
rm -f venv/.longarm
venv/bin/python -m pip --disable-pip-version-check --no-input install --no-deps --no-index --force-reinstall \\
  wheels/longarm_*.whl
printf '%s\\n' "$longarm" >venv/.longarm
"""

# config
START_DETACHED = """\
umask 077
cd "$directory"
printf '%s\\n' "$config" >run/service.json
rm -rf cache/temporary
mkdir -p cache/temporary
venv/bin/python -m longarm_service.supervisor "$directory" --detach
"""

# config, unit (its text), unit_name, scope (--user or --system), secret_names
START_UNIT = """\
umask 077
cd "$directory"
printf '%s\\n' "$config" >run/service.json
rm -rf cache/temporary
mkdir -p cache/temporary
printf '%s\\n' "$unit" >"run/$unit_name"
rm -f run/state
systemctl "$scope" link --force "$directory/run/$unit_name"
systemctl "$scope" daemon-reload
# Secrets go from this script's environment into the manager's memory
if [ -n "$secret_names" ]; then systemctl "$scope" import-environment $secret_names; fi
systemctl "$scope" enable "$unit_name"
systemctl "$scope" restart "$unit_name"
"""

# seconds. Prints the log of the start, if it is not over yet
AWAIT_READY = """\
cd "$directory"
exec venv/bin/python -u -m longarm_service.supervisor "$directory" --wait "$seconds"
"""

READ_PORTS = 'cat "$directory/run/announce.json"'

STOP = (
    _IS_OURS
    + """\
supervisor=$(state_of supervisor)
service=$(state_of service)
is_ours "$supervisor" || supervisor=
is_ours "$service" || service=
# A service without its supervisor is on its way out, or should be
kill -TERM ${supervisor:-$service} 2>/dev/null || exit 0
left=400
while is_ours "$supervisor" || is_ours "$service"; do
  left=$((left - 1))
  if [ "$left" = 0 ]; then kill -KILL $supervisor $service 2>/dev/null || :; break; fi
  sleep 0.1
done
rm -f "$directory/run/announce.json"
"""
)

# Waits until another process is there, or none will be
RESTART = (
    _IS_OURS
    + """\
supervisor=$(state_of supervisor)
service=$(state_of service)
is_ours "$supervisor"
kill -HUP "$supervisor"
left=400
while [ "$(state_of service)" = "$service" ] && is_ours "$supervisor" && [ "$left" -gt 0 ]; do
  left=$((left - 1))
  sleep 0.1
done
"""
)

# unit_name. What an interrupt leaves is Longarm's still, and nothing of it looks whole. Says what cannot be removed
REMOVE = """\
if [ -e "$directory/run/$unit_name" ]; then
  if [ "$(id -u)" = 0 ]; then scope=--system; else scope=--user; fi
  systemctl "$scope" disable --now "$unit_name" || :
  secret_names=$(sed -n 's/^PassEnvironment=//p' "$directory/run/$unit_name")
  if [ -n "$secret_names" ]; then systemctl "$scope" unset-environment $secret_names || :; fi
  systemctl "$scope" daemon-reload || :
fi
# Nothing but what Longarm made is ever removed
[ -f "$directory/.longarm" ] || exit 0
for part in venv policies; do
  rm -rf "$directory/$part.removed"
  if [ -e "$directory/$part" ]; then mv "$directory/$part" "$directory/$part.removed"; fi
done
find "$directory/" -mindepth 1 -maxdepth 1 ! -name .longarm -exec rm -rf {} +
rm "$directory/.longarm"
if ! reason=$(rmdir "$directory" 2>&1); then echo "stays=$reason"; fi
"""

# count, follow (yes or no)
LOGS = """\
log=$directory/logs/service.log
if [ ! -e "$log" ]; then echo "there is no log yet: $log"; exit 1; fi
if [ "$follow" = yes ]; then tail -n "$count" -F "$log" 2>/dev/null; else tail -n "$count" "$log"; fi
"""

# target. Prints size, sha256 and name of each file in it
LIST_FILES = """\
[ -d "$target" ] || exit 0
cd "$target"
find . -type f | while IFS= read -r file; do
  printf '%s %s %s\\n' "$(wc -c <"$file" | tr -d ' ')" "$(sha256sum <"$file" | cut -c 1-64)" "${file#./}"
done
"""

# Says why a megabyte cannot be written in directory, or next above it that is there, and how much is left
TRY_TO_WRITE = """\
while [ ! -d "$directory" ]; do directory=$(dirname "$directory"); done
probe=$directory/.longarm-probe
if ! reason=$({ head -c 1048576 /dev/zero >"$probe"; } 2>&1); then echo "reason=${reason##*: }"; fi
rm -f "$probe"
left() { df -P "$1" "$directory" 2>/dev/null | { read -r _; read -r _ _ _ free _ && echo "$2=$free"; } || :; }
left -k free_kib
left -i free_files
"""

# target: what was sent as target.part takes its place
FINISH_FILES = """\
rm -rf "$target"
mv "$target.part" "$target"
"""
