# shellcheck shell=bash
# Installing what the scripts need, on Debian bookworm or trixie. Sourced, not run.
#
#   need_packages PACKAGE...             installed from the machine's own apt sources
#   need_backports VERSION PACKAGE...    the same, from <codename>-backports when the machine's own suite has less than VERSION
#   need_archive PACKAGE                 puts a package's .deb into the working directory, without installing it
#   debian_codename                      prints bookworm, trixie, ...
#   debian_mirror                        prints the Debian mirror the machine uses
#   as_root COMMAND...                   runs COMMAND as root, by sudo when needed
#
# Nothing is installed in silence, and the machine's apt sources are left as they are.

# Debian's default mirror, for machines whose apt sources name none.
DEFAULT_DEBIAN_MIRROR=http://deb.debian.org/debian

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo -- "$@"
    fi
}

debian_codename() {
    (
        # shellcheck source=/dev/null
        . /etc/os-release
        printf '%s\n' "${VERSION_CODENAME:?/etc/os-release names no release}"
    )
}

debian_mirror() {
    local uri
    # The mirror of the package `dpkg`: every Debian machine has a source for it, whatever else its sources hold.
    # shellcheck disable=SC2016 # the placeholders are apt's
    uri=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "main" && $4 !~ /security/ { sub("/$", "", $1); print $1; exit }') || true
    if [[ -z $uri ]]; then
        # The lists have never been fetched: read the sources themselves.
        uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
            sed -nE 's/^(URIs:|deb (\[[^]]*\] )?) *([^ ]+\/debian)\/?( .*)?$/\3/p' | head -n 1) || true
    fi
    printf '%s\n' "${uri:-$DEFAULT_DEBIAN_MIRROR}"
}

# apt-get for scripts: no questions, only what is asked for, its chatter shown only when it fails, and patience with another
# apt at work. apt waits for dpkg's lock by itself, but gives up at once on the lock of the package lists: hence our own lock
# around every call.
_deps_apt_get() {
    local output
    output=$(as_root env DEBIAN_FRONTEND=noninteractive \
        flock --timeout 900 /run/lock/sealock-apt.lock \
        apt-get --quiet=2 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends "$@" 2>&1 </dev/null) || {
        printf '%s\n' "$output" >&2
        return 1
    }
}

_deps_missing() {
    local package
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
    done
}

# Prints the packages of which apt knows no version to install.
_deps_unknown() {
    local package
    for package; do
        [[ -n $(_deps_candidate "$package") ]] || printf '%s\n' "$package"
    done
}

_deps_candidate() {
    apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

need_packages() {
    local -a missing
    mapfile -t missing < <(_deps_missing "$@")
    ((${#missing[@]})) || return 0
    printf '%s: installing Debian packages: %s\n' "${0##*/}" "${missing[*]}" >&2
    if [[ -n $(_deps_unknown "${missing[@]}") ]]; then
        _deps_apt_get update
    fi
    # Lists that are there can still be too old: the mirror then has newer versions only, and the download fails.
    _deps_apt_get install "${missing[@]}" || {
        _deps_apt_get update
        _deps_apt_get install "${missing[@]}"
    }
}

need_archive() {
    printf '%s: fetching the Debian package %s\n' "${0##*/}" "$1" >&2
    [[ -z $(_deps_unknown "$1") ]] || _deps_apt_get update
    apt-get --quiet=2 download "$1" >/dev/null 2>&1 || {
        _deps_apt_get update
        apt-get --quiet=2 download "$1" >/dev/null
    }
}

# Does every named package have at least this version installed?
_deps_have_version() {
    local version=$1 package installed
    shift
    for package; do
        installed=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$package" 2>/dev/null) || return 1
        [[ $installed == 'installed '* ]] || return 1
        dpkg --compare-versions "${installed#installed }" ge "$version" || return 1
    done
}

need_backports() {
    local version=$1 package codename own sources status=0
    shift
    if _deps_have_version "$version" "$@"; then
        return 0
    fi

    [[ -z $(_deps_unknown "$@") ]] || _deps_apt_get update
    own=yes
    for package; do
        dpkg --compare-versions "$(_deps_candidate "$package")" ge "$version" || own=no
    done
    if [[ $own == yes ]]; then
        printf '%s: installing Debian packages: %s\n' "${0##*/}" "$*" >&2
        _deps_apt_get install "$@"
        return
    fi

    codename=$(debian_codename)-backports
    printf '%s: installing Debian packages from %s: %s\n' "${0##*/}" "$codename" "$*" >&2
    # apt is given a copy of the source directory with one file more: the machine's own stays untouched even if we are killed.
    sources=$(mktemp -d)
    chmod 755 "$sources"
    cp /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list "$sources" 2>/dev/null || true
    cat >"$sources/sealock-backports.sources" <<END
Types: deb
URIs: $(debian_mirror)
Suites: $codename
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    _deps_apt_get -o Dir::Etc::SourceParts="$sources" update &&
        _deps_apt_get -o Dir::Etc::SourceParts="$sources" --target-release "$codename" install "$@" || status=$?
    rm -rf "$sources"
    return "$status"
}
