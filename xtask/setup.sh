#!/bin/sh
# Lists the system packages that `cargo xtask demo` or `cargo xtask test` lacks on this
# machine, and installs them: with --yes, or after asking on a terminal.
#
#   setup.sh demo|demo-dbus|demo-pkcs11|demo-tpm2|demo-yubikey|test|full [--yes]
#
# Exit 0: nothing is missing (any more). Exit 1: something is, and standard error says what.
# A shell script and no Rust, because the first thing that a fresh machine lacks is the
# linker, without which no Rust program can be built.
set -u

# --- what is needed -------------------------------------------------------------------

# need WHAT DEBIAN FEDORA ARCH SUSE: note that WHAT is missing, and its packages.
missing=
packages=
need() {
    missing="$missing    $1
"
    case "$manager" in
    apt-get) packages="$packages $2" ;;
    dnf) packages="$packages $3" ;;
    pacman) packages="$packages $4" ;;
    zypper) packages="$packages $5" ;;
    esac
}

has() { command -v "$1" >/dev/null 2>&1; }

# A compiler without the C library's headers and start files is of no use, so try it.
compiles() { printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c - -o /dev/null 2>/dev/null; }

# The daemon is linked with these four libraries of TSS 2.0.
tss() { has pkg-config && pkg-config --atleast-version=2.4.6 tss2-sys tss2-esys tss2-tctildr tss2-mu; }

# And with this one.
pcsc() { has pkg-config && pkg-config --atleast-version=1 libpcsclite; }

check_demo() {
    pcsc || need "pkg-config and PC/SC with its headers (the daemon's way to a YubiKey)" \
        "pkg-config libpcsclite-dev" "pkgconf-pkg-config pcsc-lite-devel" "pkgconf pcsclite" "pkgconf-pkg-config pcsc-lite-devel"
    tss || need "pkg-config and TSS 2.0 with its headers (the daemon's way to a TPM)" \
        "pkg-config libtss2-dev" "pkgconf-pkg-config tpm2-tss-devel" "pkgconf tpm2-tss" "pkgconf-pkg-config tpm2-0-tss-devel"
    compiles || need "a C compiler and the C library's headers (Rust links through it; SQLite is built with it)" \
        "gcc libc6-dev" "gcc glibc-devel" "gcc" "gcc glibc-devel"
}

# Its module is not on the PATH; its tool is.
softhsm() { has softhsm2-util || need "SoftHSM (a PKCS#11 token in software)" softhsm2 softhsm softhsm softhsm; }

bus() { has dbus-daemon || need "dbus-daemon (a message bus)" dbus-daemon dbus-daemon dbus dbus-1; }

check_demo_dbus() {
    check_demo
    bus
}

check_demo_pkcs11() {
    check_demo
    softhsm
}

# Is there a file by one of these names?
any() {
    for file; do
        [ -e "$file" ] && return
    done
    return 1
}

# TSS loads the library that speaks to a TPM by its name.
tcti() { any "/usr/lib/"*"/libtss2-tcti-$1.so.0" "/usr/lib64/libtss2-tcti-$1.so.0" "/usr/lib/libtss2-tcti-$1.so.0"; }

# A TPM in software, and the library that speaks to it.
software_tpm() {
    { has swtpm && tcti swtpm; } || need "swtpm (a TPM in software)" \
        "swtpm libtss2-tcti-swtpm0" "swtpm tpm2-tss" "swtpm tpm2-tss" "swtpm libtss2-tcti-swtpm0"
}

check_demo_tpm2() {
    check_demo
    software_tpm
}

# Some tests act as several users: as root, or as root of a user namespace.
maps_users() { [ "$(id -u)" -eq 0 ] || unshare --user --map-root-user --map-auto true 2>/dev/null; }

# A card reader in software, and what it is started with, in namespaces of its own.
vpcd() { any /usr/lib/pcsc/drivers/serial/libifdvpcd.so /usr/lib64/pcsc/drivers/serial/libifdvpcd.so; }

virtual_yubikey() {
    { { has pcscd || any /usr/sbin/pcscd; } && vpcd; } || need "pcscd and vpcd (a card reader in software)" \
        "pcscd vsmartcard-vpcd" "pcsc-lite vsmartcard-vpcd" "pcsclite virtualsmartcard" "pcsc-lite vsmartcard-vpcd"
    { has unshare && has ip; } || need "unshare and ip (they make namespaces)" \
        "util-linux iproute2" "util-linux iproute" "util-linux iproute2" "util-linux iproute2"
}

check_demo_yubikey() {
    check_demo
    virtual_yubikey
}

# One of ykman's parts has to be built: the one that speaks to PC/SC.
installs_python() {
    python3 -c 'import ensurepip, venv, os, sysconfig
os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

# Yubico's PKCS#11 module.
ykcs11() { any /usr/lib/*/libykcs11.so* /usr/lib64/libykcs11.so* /usr/lib/libykcs11.so*; }

# Not whichever Python comes first on the PATH: distributions' packages are for their own.
jeepney() { /usr/bin/python3 -c 'import jeepney' 2>/dev/null; }

# Not on the PATH.
polkit() { any /usr/lib/polkit-1/polkitd /usr/libexec/polkitd /usr/libexec/polkit-1/polkitd; }

check_test() {
    check_demo
    maps_users || need "several user ids (newuidmap, a line for this user in /etc/subuid, and unprivileged user namespaces), or root" \
        uidmap shadow-utils shadow shadow
    softhsm
    has pkcs11-tool || need "pkcs11-tool (somebody else's program on a token)" opensc opensc opensc opensc
    software_tpm
    has swtpm_localca || need "swtpm_setup and swtpm_localca (they make TPMs, and certify them)" \
        swtpm-tools swtpm-tools swtpm swtpm
    has tpm2 || need "tpm2-tools (somebody else's programs on a TPM)" tpm2-tools tpm2-tools tpm2-tools tpm2.0-tools
    virtual_yubikey
    { has yubico-piv-tool && ykcs11; } || need "yubico-piv-tool and ykcs11 (Yubico's programs on a YubiKey)" \
        "yubico-piv-tool ykcs11" yubico-piv-tool yubico-piv-tool "yubico-piv-tool libykcs11-2"
    bus
    jeepney || need "jeepney for the system's Python (an example is a client on a bus)" \
        python3-jeepney python3-jeepney python-jeepney python3-jeepney
    polkit || need "polkitd (it says who administers)" polkitd polkit polkit polkit
    { has bwrap && has xdg-dbus-proxy; } || need "bubblewrap and xdg-dbus-proxy (what a Flatpak is made of)" \
        "bubblewrap xdg-dbus-proxy" "bubblewrap xdg-dbus-proxy" "bubblewrap xdg-dbus-proxy" "bubblewrap xdg-dbus-proxy"
    has ssh-keygen || need "ssh-keygen (it signs policies)" openssh-client openssh openssh openssh-clients
    installs_python || need "Python with venv and its headers (ykman, Yubico's program on a YubiKey, is installed into one, and built)" \
        "python3-venv python3-dev" "python3 python3-devel" python "python3 python3-devel"
    has openssl || need "openssl (it signs for a recovery key, and verifies what devices sign)" openssl openssl openssl openssl
    has git || need "git (cargo and the tests use it)" git git git git
}

# OpenSSL's own build starts with a Perl program, which takes more than distributions' least.
builds_openssl() { has make && perl -MFile::Compare -MFile::Copy -MFindBin -MIPC::Cmd -e 1 2>/dev/null; }

# A library that bindgen loads; no program need be there. Not libclang-cpp, which is another one.
libclang() {
    for folder in /usr/lib/llvm*/lib /usr/lib/* /usr/lib64 /usr/lib; do
        any "$folder"/libclang.so* "$folder"/libclang-[0-9]*.so* && return
    done
    return 1
}

# Modules, which are not on the PATH.
tpm2_pkcs11() { any /usr/lib/*/pkcs11/libtpm2_pkcs11.so /usr/lib64/pkcs11/libtpm2_pkcs11.so /usr/lib/pkcs11/libtpm2_pkcs11.so; }

# In sbin, which is not on every PATH.
abrmd() { any /usr/sbin/tpm2-abrmd /usr/bin/tpm2-abrmd; }

check_full() {
    check_test
    builds_openssl || need "make and Perl with its modules (Kryoptic, a PKCS#11 token, is built with OpenSSL)" \
        "make perl" "make perl" "make perl" "make perl"
    libclang || need "libclang (Kryoptic is built with it)" libclang-dev clang-devel clang clang-devel
    tpm2_pkcs11 || need "tpm2-pkcs11 (a PKCS#11 module on a TPM)" libtpm2-pkcs11-1 tpm2-pkcs11 tpm2-pkcs11 tpm2-pkcs11
    { abrmd && tcti tabrmd; } || need "tpm2-abrmd (it shares a TPM out)" \
        "tpm2-abrmd libtss2-tcti-tabrmd0" tpm2-abrmd tpm2-abrmd "tpm2.0-abrmd libtss2-tcti-tabrmd0"
}

# --- how it is installed --------------------------------------------------------------

find_manager() {
    for manager in apt-get dnf pacman zypper; do
        has "$manager" && return
    done
    manager=
}

commands() {
    case "$manager" in
    apt-get)
        echo "apt-get update"
        echo "env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends$packages"
        ;;
    dnf) echo "dnf install -y$packages" ;;
    pacman) echo "pacman -S --needed --noconfirm$packages" ;;
    zypper) echo "zypper --non-interactive install$packages" ;;
    esac
}

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

consented() {
    [ "$yes" = yes ] && return 0
    printf 'Install%s now? [y/N] ' "$packages" >&2
    read -r answer || return 1
    case "$answer" in y | Y | yes | Yes) return 0 ;; *) return 1 ;; esac
}

# --- the work -------------------------------------------------------------------------

usage="usage: setup.sh demo|demo-dbus|demo-pkcs11|demo-tpm2|demo-yubikey|test|full [--yes]"
setup="setup --yes"
case "${1:-}" in
demo | test) what=$1 title=$1 ;;
full) what=full title="test --full" setup="setup --yes --full" ;;
demo-dbus) what=demo_dbus title="demo --door dbus" ;;
demo-pkcs11) what=demo_pkcs11 title="demo --device pkcs11" ;;
demo-tpm2) what=demo_tpm2 title="demo --device tpm2" ;;
demo-yubikey) what=demo_yubikey title="demo --device yubikey" ;;
*) fail "$usage" ;;
esac
case "${2:-}" in --yes) yes=yes ;; "") yes=no ;; *) fail "$usage" ;; esac

find_manager
"check_$what"
[ -z "$missing" ] && exit 0

printf 'cargo xtask %s needs what this machine does not have:\n%s' "$title" "$missing" >&2
[ -n "$manager" ] || fail \
    "No package manager that is known here (apt-get, dnf, pacman, zypper): install the above by your system's means."

sudo=
if [ "$(id -u)" -ne 0 ]; then
    has sudo || fail "Run this as root, then try again:" "$(commands | sed 's/^/    /')"
    sudo="sudo "
fi

if [ "$yes" = no ] && ! [ -t 0 ]; then
    fail "To install it, run:" "$(commands | sed "s/^/    $sudo/")" "or: cargo xtask $setup"
fi
consented || fail "Nothing was installed. To install it later, run:" "$(commands | sed "s/^/    $sudo/")"

commands | while read -r command; do
    echo "+ $sudo$command" >&2
    # Split into words on purpose: every word is ours.
    # shellcheck disable=SC2086
    $sudo$command </dev/null >&2 || exit 1
done || fail "The package manager failed: see above."

missing=
packages=
"check_$what"
[ -z "$missing" ] || fail "Installed, but still missing:" "$missing"
