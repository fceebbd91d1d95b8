"""Stores that handlers write to."""

import http.client
import shutil
import socket
import zipfile

from programs import JARS
from programs import RECIPES
from programs import find
from programs import java_home
from programs import run
from server import Server
from server import fill_template


class OpenSearch(Server):
    name = "opensearch"
    tools = ("java", "mvn")
    ports = ("client", "transport")
    accounts = ("opensearch", "nobody")

    def prepare(self, nodes, homes, account):
        # A copy of its own: it writes into its folder, and its account may not be able to reach that of the project.
        program, new = self.program(homes[0]), homes[0] / "new"
        if not program.exists():
            shutil.rmtree(new, ignore_errors=True)
            with zipfile.ZipFile(archive()) as file:
                file.extractall(new)
            # In the zip all is in a folder opensearch-VERSION. Python does not restore that a script is executable.
            [unpacked] = new.iterdir()
            for script in (unpacked / "bin").iterdir():
                script.chmod(0o755)
            unpacked.rename(program)
        for folder in (homes[0] / "data", homes[0] / "tmp", program / "logs"):
            folder.mkdir(exist_ok=True)
        fill_template(
            RECIPES / "opensearch" / "opensearch.yml",
            program / "config" / "opensearch.yml",
            port=nodes[0].ports["client"],
            transport=nodes[0].ports["transport"],
            data=homes[0] / "data",
        )
        if account:
            owner = f"{account.pw_uid}:{account.pw_gid}"
            run("cannot give opensearch its folder", ["chown", "-R", owner, homes[0]])

    def program(self, home):
        # Named for its version, so that another one is unpacked in its turn.
        return home / archive().stem

    def command(self, node, nodes, home):
        # It ends by exec, so that the process is the server itself. The first compiler and the plain collector make it start
        # in 3 s of CPU time in place of 8, and in a quarter of the memory.
        fast = "-XX:TieredStopAtLevel=1 -XX:-UseG1GC -XX:+UseSerialGC -XX:-AlwaysPreTouch"
        variables = {
            "OPENSEARCH_JAVA_HOME": java_home(),
            "OPENSEARCH_JAVA_OPTS": f"-Xms64m -Xmx384m {fast}",
            "OPENSEARCH_PATH_CONF": self.program(home) / "config",
            "OPENSEARCH_TMPDIR": home / "tmp",
        }
        return ["env", *(f"{key}={value}" for key, value in variables.items()), self.program(home) / "bin" / "opensearch"]

    def is_ready(self, nodes):
        connection = http.client.HTTPConnection("127.0.0.1", nodes[0].ports["client"], timeout=10)
        headers = {"Content-Type": "application/json"}
        connection.request("PUT", "/ksync-services-ready/_doc/1", "{}", headers)
        return connection.getresponse().status in (200, 201)

    def env(self, nodes, homes):
        return {"KSYNC_TEST_OPENSEARCH": f"http://{nodes[0].address}"}


class Redis(Server):
    name = "redis"
    tools = ("redis-server",)

    def command(self, node, nodes, home):
        # As a cache it keeps nothing on disk.
        place = ["--bind", "127.0.0.1", "--port", str(node.ports["client"]), "--dir", home]
        return [find("redis-server"), *place, "--save", ""]

    def is_ready(self, nodes):
        return answer(nodes[0], b"SET ksync-services-ready 1\r\n") == b"+OK\r\n"

    def env(self, nodes, homes):
        return {"KSYNC_TEST_REDIS": nodes[0].address}


class Memcached(Server):
    name = "memcached"
    tools = ("memcached",)
    accounts = ("memcache", "nobody")

    def command(self, node, nodes, home):
        return [find("memcached"), "-l", "127.0.0.1", "-p", str(node.ports["client"]), "-U", "0"]

    def is_ready(self, nodes):
        return answer(nodes[0], b"set ksync-services-ready 0 0 1\r\n1\r\n") == b"STORED\r\n"

    def env(self, nodes, homes):
        return {"KSYNC_TEST_MEMCACHED": nodes[0].address}


def archive():
    [zip] = (JARS / "opensearch").glob("opensearch-*.zip")
    return zip


def answer(node, request):
    """The first line of what a server of a protocol in lines answers."""
    with socket.create_connection(("127.0.0.1", node.ports["client"]), timeout=5) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as lines:
            return lines.readline()
