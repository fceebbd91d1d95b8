"""How these handlers ask Postgres: by its client psql, so that nothing but Python is needed; use a driver in your own."""

import os
import re
import shutil
import sys
from urllib.parse import unquote, urlsplit

# A server that was cut off says nothing any more. Less than ksync's own limit, which is held against the records.
LIMIT_SECS = 120
# What these classes of errors mean: a value that does not fit, in 21 and 54 many together; no such table, or no right to it.
STATUSES = {"21": 65, "22": 65, "23": 65, "54": 65, "42": 78}
# What is wrong with a connection has no code.
REFUSED = (
    "psql: error: (invalid |.*(authentication failed|no password|no pg_hba.conf entry|(database|role) .* does not exist"
    "|does not support SSL|certificate))"
)


def client(url):
    """The command that runs SQL from stdin, and its environment: there the password is not seen by everybody."""
    place = urlsplit(url).netloc
    login, at, host = place.rpartition("@")
    user, _, password = login.partition(":")
    if inside := re.search(r"(?<=[?&])password=([^&]*)&?", url):
        url, password = url.replace(inside[0], "", 1), inside[1]
    # The rest of the URL, and what completes it, is libpq's to read.
    command = ["psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", url.replace(place, user + at + host, 1)]
    secrets = {"PGPASSWORD": unquote(password)} if password else {}
    return command, {"PGCONNECT_TIMEOUT": "10", **os.environ, "PGCLIENTENCODING": "UTF8", "LC_ALL": "C", **secrets}


def psql(variable):
    """The same for the URL in this variable of the environment, with the codes of errors."""
    if not os.environ.get(variable):
        misconfigured(f"{variable} is not set")
    if not shutil.which("psql"):
        misconfigured("psql is not installed; in Debian it is in postgresql-client")
    command, environment = client(os.environ[variable])
    # No replica: it may lag, and its versions are others.
    return [*command, "-v", "VERBOSITY=verbose"], {**environment, "PGTARGETSESSIONATTRS": "primary", "PGTZ": "UTC"}


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def misconfigured(error):
    print(error, file=sys.stderr)
    sys.exit(78)


def give_up(errors):
    """Ends the process, by what these errors mean to ksync: if they are not psql's, that the same batch comes again."""
    if re.match(REFUSED, errors):
        misconfigured(errors.strip())
    print(errors.strip(), file=sys.stderr)
    found = re.search(r"^\w+: +(\d\d)\w{3}: ", errors, re.MULTILINE)
    sys.exit(STATUSES.get(found and found[1], 75))
