#!/usr/bin/env python3
"""Shows what mlskeyd keeps for this user, follows what happens, and makes a KeyPackage.

    custody.py list
    custody.py get PATH
    custody.py follow [COUNT]
    custody.py key-package NAME
    custody.py freeze TARGET [REASON]

`--bus ADDRESS` is another bus than the machine's.
"""

import argparse
import time

from mlskeyd import Custody, Refused

SUITE = 0x0001  # MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519


def main():
    parser = argparse.ArgumentParser(description="mlskeyd over D-Bus")
    parser.add_argument("--bus", default="SYSTEM", help="SYSTEM, SESSION or an address")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="devices, identities and keys")
    get = commands.add_parser("get", help="the properties of one object")
    get.add_argument("path")
    follow = commands.add_parser("follow", help="print what happens")
    follow.add_argument("count", type=int, nargs="?", help="end after so many")
    package = commands.add_parser("key-package", help="print a KeyPackage (RFC 9420, 10)")
    package.add_argument("name", help="the identity's name")
    freeze = commands.add_parser("freeze", help="have nothing signed, for administrators")
    freeze.add_argument("target", help="as mlskeyctl freeze has it, such as 'user 1000'")
    freeze.add_argument("reason", nargs="?", default="")
    arguments = parser.parse_args()
    custody = Custody(arguments.bus)
    if arguments.command == "list":
        show(custody)
    elif arguments.command == "get":
        for name, value in custody.properties(arguments.path).items():
            print(f"{name}: {value}")
    elif arguments.command == "freeze":
        custody.freeze(arguments.target, arguments.reason)
    elif arguments.command == "follow":
        print("following", flush=True)
        for number, (name, values) in enumerate(custody.signals(), 1):
            print(name, *values, flush=True)
            if number == arguments.count:
                return
    else:
        print(key_package(custody.open_channel(), arguments.name).hex())


def show(custody):
    objects = custody.objects()
    for device in objects.get("Device", {}).values():
        print(f"device {device['Name']}: {device['Kind']}, {device['State']}")
    for identity in objects.get("Identity", {}).values():
        print(f"identity {identity['Name']}: {identity['Algorithm']}, {identity['Tier']}")
    for key in objects.get("Key", {}).values():
        print(f"key {key['Id']}: {key['Purpose']}, {key['Algorithm']}, {key['Tier']}")


def key_package(channel, name):
    """A KeyPackage with all its private keys in custody."""
    identity, signature_key = channel.create_identity(name)
    _, leaf_key = channel.generate_hpke()
    _, init_key = channel.generate_hpke()
    now = int(time.time())
    leaf = opaque(leaf_key) + opaque(signature_key)
    leaf += u16(1) + opaque(name.encode())  # basic credential
    versions, suites, credentials = u16(1), u16(SUITE), u16(1)
    leaf += opaque(versions) + opaque(suites) + opaque(b"") + opaque(b"") + opaque(credentials)
    leaf += b"\x01" + u64(now - 3600) + u64(now + 30 * 24 * 3600)  # source key_package
    leaf += opaque(b"")  # extensions
    leaf += opaque(channel.sign(identity, sign_content("LeafNodeTBS", leaf)))
    package = u16(1) + u16(SUITE) + opaque(init_key) + leaf + opaque(b"")
    return package + opaque(channel.sign(identity, sign_content("KeyPackageTBS", package)))


def sign_content(label, content):
    """SignContent (RFC 9420, 5.1.2)."""
    return opaque(b"MLS 1.0 " + label.encode()) + opaque(content)


def opaque(content):
    """A vector with its length (RFC 9420, 2.1.2)."""
    length = len(content)
    if length < 0x40:
        return bytes([length]) + content
    if length < 0x4000:
        return (length | 0x4000).to_bytes(2, "big") + content
    return (length | 0x8000_0000).to_bytes(4, "big") + content


def u16(number):
    return number.to_bytes(2, "big")


def u64(number):
    return number.to_bytes(8, "big")


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        raise SystemExit(f"custody.py: {refused}")
    except KeyboardInterrupt:
        pass
