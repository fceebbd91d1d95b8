//! Which database it is, in words that have no password.

use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::sql::Sql;
use super::statement::Dialect;
use super::trouble::Trouble;
use super::value::Value;
use super::{Connection, Database, Scan, my_cnf, options};

/// What stands behind a user for whom row security chooses the rows.
pub const ROW_SECURITY: &str = " (row security)";

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `postgres at db1:5432`; SQLite has none.
    pub server: Option<String>,
    /// `shop, schema public`, or the path of the file.
    pub database: String,
    /// Who asks, of Postgres alone; with [`ROW_SECURITY`] behind it where that chooses the rows.
    pub user: Option<String>,
}

impl Database {
    /// Where this database is, which was opened by `url`; `only` is what is read there, where that is known to be all.
    pub async fn place(&mut self, url: &str, only: Option<&Scan>) -> Result<Place, Trouble> {
        let dialect = self.dialect();
        let (server, database) = match &self.connection {
            Connection::Postgres(_) => {
                let options: PgConnectOptions = options(url)?;
                let address = match options.get_socket() {
                    Some(socket) => socket.display().to_string(),
                    None => options.get_host().to_owned(),
                };
                let sql = "SELECT concat(current_database(), ', schema ', current_schema())";
                (format!("postgres at {address}:{}", options.get_port()), sql)
            }
            Connection::MySql(_) => {
                let options: MySqlConnectOptions = my_cnf::complete(options(url)?, url);
                let address = match options.get_socket() {
                    Some(socket) => socket.display().to_string(),
                    None => format!("{}:{}", options.get_host(), options.get_port()),
                };
                (format!("mysql at {address}"), "SELECT DATABASE()")
            }
            Connection::Sqlite(_) => {
                let options: SqliteConnectOptions = options(url)?;
                let file = options.get_filename();
                // What cannot be looked up is no file, but in memory.
                let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
                return Ok(Place { server: None, database: path.display().to_string(), user: None });
            }
        };
        let database = self.text(&Sql::new(dialect, database)).await?;
        // In MySQL there may be none, while tables are named with theirs.
        let database = database.unwrap_or_else(|| "none".to_owned());
        let user = match dialect {
            Dialect::Postgres => self.text(&user(only)).await?,
            Dialect::MySql | Dialect::Sqlite => None,
        };
        Ok(Place { server: Some(server), database, user })
    }

    /// The time zone of the session, where a key is read in it: in another one its text means another time.
    pub async fn time_zone(&mut self, scan: &Scan) -> Result<Option<String>, Trouble> {
        let Database { connection, watch, is_lost, .. } = self;
        match connection {
            Connection::MySql(mysql) if scan.key.iter().any(|column| column.is_zoned) => {
                Ok(Some(watch.over(mysql.time_zone(), is_lost).await??))
            }
            _ => Ok(None),
        }
    }
}

/// Asks for the user, and whether row security chooses the rows of the only table that is read; where there may be others, of any
/// table.
fn user(only: Option<&Scan>) -> Sql {
    let tables = "WHEN EXISTS (SELECT FROM pg_class WHERE relrowsecurity AND row_security_active(oid)";
    let mut sql = Sql::new(Dialect::Postgres, format!("SELECT concat(current_user, CASE {tables}"));
    if let Some(table) = only.and_then(|scan| scan.relation.table.as_ref()) {
        let name = Value::Text(table.quoted(Dialect::Postgres));
        sql.push(" AND (oid = ").bind("?::text::regclass", &name);
        // A view may read any of them.
        sql.push(" OR (SELECT relkind FROM pg_class WHERE oid = ").bind("?::text::regclass", &name).push(") = 'v')");
    }
    sql.push(&format!(") THEN '{ROW_SECURITY}' END)"));
    sql
}
