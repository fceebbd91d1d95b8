//! What went wrong with the database, sorted by who can mend it.

use std::fmt;

use anyhow::{Error, anyhow};
use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::postgres::PgDatabaseError;

/// A failure of the database or of what it was asked.
#[derive(Debug)]
pub enum Trouble {
    /// Something that is named does not exist, may not be used, or cannot serve as it is set.
    Misconfigured(Error),
    /// The database cannot be reached or is busy: the same may work later.
    Away(Error),
    /// The database refused, or did what it must not: the same will fail again.
    Refused(Error),
    /// The same, for a value that can be none of the type that it is compared with.
    Unfit(Error),
    /// Another process is at the same work.
    Busy(Error),
}

impl Trouble {
    /// The same trouble, told from one level further out.
    pub fn context(self, text: impl fmt::Display + Send + Sync + 'static) -> Trouble {
        match self {
            Trouble::Misconfigured(error) => Trouble::Misconfigured(error.context(text)),
            Trouble::Away(error) => Trouble::Away(error.context(text)),
            Trouble::Refused(error) => Trouble::Refused(error.context(text)),
            Trouble::Unfit(error) => Trouble::Unfit(error.context(text)),
            Trouble::Busy(error) => Trouble::Busy(error.context(text)),
        }
    }

    fn error(&self) -> &Error {
        match self {
            Trouble::Misconfigured(error)
            | Trouble::Away(error)
            | Trouble::Refused(error)
            | Trouble::Unfit(error)
            | Trouble::Busy(error) => error,
        }
    }
}

/// With `{:#}` the whole chain of causes.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl std::error::Error for Trouble {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error().source()
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        match error {
            sqlx::Error::Io(error) => Trouble::Away(error.into()),
            sqlx::Error::WorkerCrashed => Trouble::Away(error.into()),
            sqlx::Error::Configuration(error) | sqlx::Error::Tls(error) => {
                Trouble::Misconfigured(Error::from_boxed(error))
            }
            sqlx::Error::Database(error) => answer(error.as_ref()),
            other => Trouble::Refused(other.into()),
        }
    }
}

/// Whether `error` ended a transaction only because others ran beside it: the same may work at once.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    if let Some(postgres) = error.try_downcast_ref::<PgDatabaseError>() {
        // lock_not_available, serialization_failure, deadlock_detected
        matches!(postgres.code(), "55P03" | "40001" | "40P01")
    } else if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
        // lock wait timeout, deadlock
        matches!(mysql.number(), 1205 | 1213)
    } else {
        is_sqlite_busy(error)
    }
}

/// Whether `error` says that there is no such table.
pub(super) fn is_missing_table(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    if let Some(postgres) = error.try_downcast_ref::<PgDatabaseError>() {
        // undefined_table, invalid_schema_name
        matches!(postgres.code(), "42P01" | "3F000")
    } else if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
        mysql.number() == 1146
    } else {
        error.message().starts_with("no such table")
    }
}

/// SQLITE_BUSY (5) or SQLITE_LOCKED (6); the low byte of an extended code is its primary code.
fn is_sqlite_busy(error: &dyn DatabaseError) -> bool {
    matches!(sqlite_code(error), Some(5 | 6))
}

fn sqlite_code(error: &dyn DatabaseError) -> Option<u32> {
    error.code()?.parse::<u32>().ok().map(|code| code & 0xff)
}

fn answer(error: &dyn DatabaseError) -> Trouble {
    if let Some(postgres) = error.try_downcast_ref::<PgDatabaseError>() {
        return answer_of_postgres(postgres);
    }
    if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return answer_of_mysql(mysql.number(), anyhow!("{mysql}"));
    }
    let cause = anyhow!("{}", error.message());
    match sqlite_code(error) {
        Some(5 | 6) => Trouble::Away(cause),
        // For a name it does not know SQLite has no code but SQLITE_ERROR.
        Some(1) if error.message().starts_with("no such ") => Trouble::Misconfigured(cause),
        // SQLITE_PERM, SQLITE_CANTOPEN, SQLITE_NOTADB
        Some(3 | 14 | 26) => Trouble::Misconfigured(cause),
        _ => Trouble::Refused(cause),
    }
}

fn answer_of_mysql(number: u16, cause: Error) -> Trouble {
    match number {
        // Too many connections, of all or of the user; shutting down, connection killed, idle for too long; lock wait timeout,
        // deadlock; a node of Galera that is not ready.
        1040 | 1047 | 1053 | 1203 | 1205 | 1213 | 1226 | 1927 | 4031 => Trouble::Away(cause),
        // No right to the server, database, command, table, column; no such database, column, table; a name twice.
        1044 | 1045 | 1049 | 1054 | 1060 | 1142 | 1143 | 1146 | 1227 | 1698 => Trouble::Misconfigured(cause),
        // A host that is blocked, or may not connect; a password that has to be changed, or was not; a locked account, of MySQL,
        // of MariaDB; a connection that has to be encrypted.
        1129 | 1130 | 1820 | 1862 | 3118 | 3159 | 4151 => Trouble::Misconfigured(cause),
        // Wrong values, that of a text that another character set cannot hold too.
        1267 | 1292 | 1366 | 1411 | 1525 | 3854 | 3988 => Trouble::Unfit(cause),
        _ => Trouble::Refused(cause),
    }
}

fn answer_of_postgres(error: &PgDatabaseError) -> Trouble {
    // Not its Display, which adds a line number of the server's own source.
    let cause = match error.hint() {
        Some(hint) => anyhow!("{} ({hint})", error.message()),
        None => anyhow!("{}", error.message()),
    };
    match error.code() {
        // lock_not_available, serialization_failure, deadlock_detected, the server is going or coming, idle for too long, a
        // transaction that was, or that took too long
        "55P03" | "40001" | "40P01" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => Trouble::Away(cause),
        // insufficient_privilege; undefined table, column, schema, database; ambiguous column
        "42501" | "42P01" | "42703" | "3F000" | "3D000" | "42702" => Trouble::Misconfigured(cause),
        // A prepared statement that is there already, or is not there: that of another session.
        "42P05" | "26000" => Trouble::Misconfigured(cause.context(
            "a pooler in transaction mode has given the session a backend that others had; connect to the server itself",
        )),
        // Connection exceptions and insufficient resources, such as too many connections.
        code if code.starts_with("08") || code.starts_with("53") => Trouble::Away(cause),
        // Refused logins.
        code if code.starts_with("28") => Trouble::Misconfigured(cause),
        // Data exceptions.
        code if code.starts_with("22") => Trouble::Unfit(cause),
        _ => Trouble::Refused(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_of_mysql_or_mariadb_answers_is_sorted_by_who_can_mend_it() {
        let kind = |number| match answer_of_mysql(number, anyhow!("told")) {
            Trouble::Misconfigured(_) => "misconfigured",
            Trouble::Away(_) => "away",
            Trouble::Unfit(_) => "unfit",
            Trouble::Refused(_) => "refused",
            Trouble::Busy(_) => "busy",
        };
        assert_eq!([1047, 1203, 1226].map(kind), ["away"; 3]);
        assert_eq!([1129, 1130, 1820, 1862, 3118, 3159, 4151].map(kind), ["misconfigured"; 7]);
        assert_eq!([1292, 1064].map(kind), ["unfit", "refused"]);
    }
}
