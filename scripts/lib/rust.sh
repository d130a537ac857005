# shellcheck shell=bash
# Rust for the scripts. Sourced, not run, from the repository's root.
#
#   need_rust                 there is a Rust toolchain
#   static_cargo ARGUMENT...  cargo, building static programs below $STATIC_TARGET_DIR

STATIC_TARGET=x86_64-unknown-linux-gnu
# shellcheck disable=SC2034 # used by those who source this
STATIC_TARGET_DIR=target/$STATIC_TARGET

need_rust() {
    # rustup's programs are not in the path of every kind of shell.
    # shellcheck source=/dev/null
    [[ ! -f $HOME/.cargo/env ]] || . "$HOME/.cargo/env"
    if ! command -v cargo >/dev/null; then
        printf '%s: there is no cargo: install the Rust toolchain that rust-toolchain.toml names, with rustup\n' "${0##*/}" >&2
        return 1
    fi
}

static_cargo() {
    # Of Debian's libraries a static program takes the archives.
    local libseccomp
    libseccomp=$(gcc -print-file-name=libseccomp.a)
    export LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=${libseccomp%/*}
    # With an explicit target the flag does not apply to build scripts and procedural macros, which can't be static.
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS='-C target-feature=+crt-static' \
        cargo "$1" --target "$STATIC_TARGET" "${@:2}"
}
