"""mlskeyd from Python: the D-Bus door, and the protocol behind it.

Needs jeepney (Debian: python3-jeepney). `Custody` looks and listens on the bus, where nothing
secret is; `Channel` is a connection of this process's own, on which keys are made and used.
The layout of each message is that of the crate mlskeyd-protocol (wire version 1), in postcard
(https://postcard.jamesmunns.com/wire-format): integers longer than a byte are varints, and an
enum begins with the number of its variant.
"""

import socket
import struct

from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

NAME = "org.mlskeyd.Custody1"
ROOT = "/org/mlskeyd/Custody1"


class Refused(Exception):
    """The daemon refused a request, or failed in it: its text says what can be done."""


class Custody:
    """The daemon on the bus: `bus` is "SYSTEM", "SESSION" or an address."""

    def __init__(self, bus="SYSTEM"):
        self.connection = open_dbus_connection(bus, enable_fds=True)
        self.address = DBusAddress(ROOT, bus_name=NAME, interface=NAME)

    def call(self, address, method, signature=None, body=()):
        reply = self.connection.send_and_get_reply(new_method_call(address, method, signature, body))
        if reply.header.message_type == MessageType.error:
            name = reply.header.fields[HeaderFields.error_name]
            raise Refused(f"{name}: {reply.body[0] if reply.body else ''}")
        return reply.body

    def objects(self):
        """All devices, and this app's identities and keys: their properties, by interface
        (as "Device") and path. From now on what happens to them is told."""
        manager = self.address.with_interface("org.freedesktop.DBus.ObjectManager")
        found = {}
        for path, interfaces in self.call(manager, "GetManagedObjects")[0].items():
            for interface, properties in interfaces.items():
                kind = interface.removeprefix(NAME + ".")
                values = {name: value for name, (_, value) in properties.items()}
                found.setdefault(kind, {})[path] = values
        return found

    def properties(self, path):
        """What an object shows of itself."""
        bus = "org.freedesktop.DBus.Properties"
        address = DBusAddress(path, bus_name=NAME, interface=bus)
        (found,) = self.call(address, "GetAll", "s", ("",))
        return {name: value for name, (_, value) in found.items()}

    def freeze(self, target, reason):
        """Has nothing signed, opened or made for something; for administrators."""
        self.call(self.address, "Freeze", "ss", (target, reason))

    def signals(self):
        """What happens, as (name, arguments), without end."""
        self.call(self.address, "Subscribe")
        while True:
            message = self.connection.receive()
            if message.header.message_type == MessageType.signal:
                yield message.header.fields[HeaderFields.member], message.body

    def open_channel(self):
        (descriptor,) = self.call(self.address, "OpenChannel")
        return Channel(descriptor.to_socket())


class Channel:
    """A connection that speaks the daemon's protocol."""

    STATUS, CREATE_IDENTITY, IDENTITIES, PREPARE, SIGN, GENERATE_HPKE = range(6)

    def __init__(self, stream):
        self.stream = stream
        self.token = 0
        service = 0  # Custody: what apps ask
        self.write(b"mlskeyd\0" + varint(1) + varint(1) + varint(service) + text("python"))
        welcome = self.read()
        if welcome.variant() == 3:  # Challenge: only this process can answer it
            self.write(welcome.take(32))
            welcome = self.read()
        welcome.at = 0
        agreed = welcome.variant()
        if agreed != 0:
            raise Refused(welcome.text() if agreed == 2 else "no wire version in common")

    def write(self, frame):
        self.stream.sendall(struct.pack(">I", len(frame)) + frame)

    def read(self):
        (length,) = struct.unpack(">I", self.receive(4))
        return Reader(self.receive(length))

    def receive(self, count):
        parts = b""
        while len(parts) < count:
            part = self.stream.recv(count - len(parts))
            if not part:
                raise Refused("mlskeyd closed the connection")
            parts += part
        return parts

    def call(self, method, arguments):
        """Asks, and answers a reader of what was answered."""
        self.token += 1
        deadline = varint(60) + varint(0)  # seconds, nanoseconds
        trace = bytes(16) + varint(0) + varint(1)
        head = varint(0) + deadline + trace + varint(self.token)
        person = varint(1) + varint(30_000)  # may wait so many milliseconds for one
        options = person + varint(0) + varint(self.token)
        self.write(head + varint(method) + options + arguments)
        while True:
            answer = self.read()
            if answer.variant() == 1:  # progress: what the call waits for
                continue
            if answer.number() != self.token:
                raise Refused("an answer to another call")
            if answer.variant() != 0:
                raise Refused("the call was not served")
            answer.variant()  # which method's answer it is
            if answer.variant() == 0:
                return answer
            answer.variant()  # the code
            raise Refused(f"{answer.text()}; {answer.text()}")

    def create_identity(self, name):
        """The key's id and its public key (Ed25519) of the identity; made if it is not there."""
        credential = varint(0) + text(name)
        scheme = varint(0)
        placement = b"\0\0"
        answer = self.call(self.CREATE_IDENTITY, text(name) + credential + scheme + placement)
        answer.text()
        answer.credential()
        key = answer.take(16)
        answer.variant()
        return key, answer.bytes()

    def generate_hpke(self):
        """The id and the public key of a new HPKE key (X25519)."""
        answer = self.call(self.GENERATE_HPKE, varint(1) + b"\0\0")
        return answer.take(16), answer.bytes()

    def sign(self, key, content):
        """Signs a serialised SignContent (RFC 9420, 5.1.2), which the daemon reads."""
        return self.call(self.SIGN, key + varint(len(content)) + content).bytes()


class Reader:
    """Reads postcard."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self):
        value, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    variant = number

    def bytes(self):
        return self.take(self.number())

    def text(self):
        return self.bytes().decode()

    def credential(self):
        if self.variant() == 0:
            return [self.bytes()]
        return [self.bytes() for _ in range(self.number())]


def varint(number):
    encoded = b""
    while number >= 0x80:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def text(value):
    return varint(len(value.encode())) + value.encode()
