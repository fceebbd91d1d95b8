"""Just enough of Kafka's and ZooKeeper's protocols; a JVM for each question would cost a second."""

import socket
import struct


def read_exactly(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("connection closed")
        data += part
    return data


def ask(connection, request):
    """Sends a request and reads an answer; both are prefixed with their length."""
    connection.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", read_exactly(connection, 4))
    return read_exactly(connection, size)


def string(text):
    return struct.pack(">h", len(text)) + text.encode()


def kafka_create_topic(port, topic, replicas, partitions=1, settings=()):
    """Creates a topic by CreateTopics version 2, with pairs of names and values; fine if it exists."""
    name = string(topic)
    # API key 19, version 2, correlation id, no client id; the arrays are assignments and configs.
    request = struct.pack(">hhih", 19, 2, 1, -1) + struct.pack(">i", 1) + name
    request += struct.pack(">ihii", partitions, replicas, 0, len(settings))
    request += b"".join(string(key) + string(value) for key, value in settings)
    request += struct.pack(">i?", 2000, False)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        answer = ask(connection, request)
    # Before the error: correlation id, throttle time, length of the array.
    (error,) = struct.unpack_from(">h", answer, 12 + len(name))
    already_exists = 36
    return error in (0, already_exists)


def kafka_delete_topic(port, topic):
    """Deletes a topic by DeleteTopics version 1; fine if it does not exist."""
    name = string(topic)
    request = struct.pack(">hhih", 20, 1, 1, -1) + struct.pack(">i", 1) + name + struct.pack(">i", 5000)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        answer = ask(connection, request)
    (error,) = struct.unpack_from(">h", answer, 12 + len(name))
    unknown_topic = 3
    return error in (0, unknown_topic)


def kafka_delete_records(connection, topic, before):
    """Deletes the records before an offset of partition 0 by DeleteRecords version 0; only its leader does that."""
    name = string(topic)
    request = struct.pack(">hhih", 21, 0, 1, -1) + struct.pack(">i", 1) + name
    request += struct.pack(">iiqi", 1, 0, before, 5000)
    answer = ask(connection, request)
    # Before the error: correlation id, throttle time, length of the array, the name, length, partition, log start.
    (error,) = struct.unpack_from(">h", answer, 28 + len(name))
    return error == 0


def kafka_end_offset(connection, topic, partition=0):
    """The end of a topic's partition by ListOffsets version 1; None while Kafka does not know it."""
    name = string(topic)
    consumer, latest = -1, -1
    request = struct.pack(">hhihi", 2, 1, 1, -1, consumer) + struct.pack(">i", 1) + name
    request += struct.pack(">iiq", 1, partition, latest)
    answer = ask(connection, request)
    # Before the error: correlation id, length of the array, the name, length of the array, partition.
    error, _time, offset = struct.unpack_from(">hqq", answer, 16 + len(name))
    return offset if error == 0 else None


def zookeeper_write(port):
    """Creates an ephemeral node and closes the session, which deletes it."""
    path = b"/ksync-services-ready-"
    connect = struct.pack(">iqiqi16s?", 0, 0, 5000, 0, 16, b"", False)
    world = struct.pack(">ii5si6s", 31, 5, b"world", 6, b"anyone")
    ephemeral_sequential = 3
    create = struct.pack(">iii", 1, 1, len(path)) + path + struct.pack(">ii", 0, 1) + world
    create += struct.pack(">i", ephemeral_sequential)
    close = struct.pack(">ii", 2, -11)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        ask(connection, connect)
        _xid, _zxid, error = struct.unpack_from(">iqi", ask(connection, create))
        ask(connection, close)
    return error == 0
