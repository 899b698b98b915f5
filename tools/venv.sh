#!/bin/sh
# Makes .venv ready for the extras named, and says which core is live in it.
#
#   tools/venv.sh EXTRA...        PYTHON=python3.12 chooses the interpreter
#
# The project is installed editable, so the compiled core lands beside its source.
# Nothing is done when nothing changed: not the interpreter, the place of the tree,
# the FASTPOOL_*_EXT variables, the extras, or what the installation is made from.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
log=.venv/install.log

fail() {
    printf 'fastpool: %s\n' "$*" >&2
    exit 1
}

# The last thing that setup.py had to say; pip shows it in its log alone.
said_by_setup() {
    sed -n 's/^[0-9T:,-]* *fastpool: //p' "$log" | tail -n 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "$python not found; install Python 3.10 or newer, or name one: PYTHON=python3.12 make ..."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is Python $version, and 3.10 or newer is needed; name one: PYTHON=python3.12 make ..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module; on Debian and Ubuntu: apt install python3-venv (or python$version-venv)"

made_from=$("$python" -c 'import sys; print(sys.base_prefix, sys.version.replace("\n", " "))')
made_from="$PWD $made_from"
if [ "$(cat .venv/made-from 2>/dev/null)" != "$made_from" ]; then
    echo "fastpool: making .venv with Python $version"
    "$python" -m venv --clear .venv
    printf '%s\n' "$made_from" >.venv/made-from
fi

build="no_ext=${FASTPOOL_NO_EXT:-0} require_ext=${FASTPOOL_REQUIRE_EXT:-0}"
installed=$(cat .venv/installed 2>/dev/null || true)
extras=${installed#"$build"}
[ "$extras" != "$installed" ] || extras=
stale=
for extra; do
    case " $extras " in
    *" $extra "*) ;;
    *) stale=1 extras="$extras $extra" ;;
    esac
done
if [ -n "$installed" ]; then
    stale=$stale$(find pyproject.toml setup.py fastpool/*.pyx fastpool/*.pxd fastpool/*.h \
        -newer .venv/installed)
fi
if [ -n "$stale" ]; then
    echo "fastpool: installing into .venv:$extras"
    # A core that could not be rebuilt must not be found again.
    rm -f "$log" .venv/installed "fastpool/_core$(.venv/bin/python -c \
        'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
    printf '%s%s\n' "$build" "$extras" >.venv/installing
    .venv/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
        --log "$log" --editable ".[$(echo $extras | tr ' ' ,)]" || {
        said=$(said_by_setup)
        fail "the installation failed, see $log${said:+: $said}"
    }
    mv .venv/installing .venv/installed
fi

case $(.venv/bin/python -c 'import fastpool; print(fastpool.__impl__)') in
c) echo "fastpool: compiled core" ;;
python)
    if [ "${FASTPOOL_IMPL:-}" = python ]; then
        echo "fastpool: interpreted core (FASTPOOL_IMPL=python)"
    elif [ "${FASTPOOL_NO_EXT:-0}" = 1 ]; then
        echo "fastpool: interpreted core (FASTPOOL_NO_EXT=1)"
    else
        echo "fastpool: $(said_by_setup)"
    fi
    ;;
*) fail "the installed package cannot be imported" ;;
esac
