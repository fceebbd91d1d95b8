//! SQLite: each value says itself of which type it is, and is bound as just that.

use futures_util::TryStreamExt as _;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{
    Column as _, ConnectOptions, Connection, Executor, Row as _, SqlSafeStr as _, Statement as _, TypeInfo as _,
    ValueRef as _,
};

use super::chunk::{Chunk, Filling};
use super::column::{Column, Kind};
use super::relation::Relation;
use super::scan::Scan;
use super::sql::{Sql, Table};
use super::statement::{Dialect, Statement};
use super::trouble::Trouble;
use super::value::Value;
use super::{Ran, options, present};

/// SQLITE_MAX_VARIABLE_NUMBER
pub(super) const MOST_VALUES: usize = 32_766;

pub(super) struct Sqlite(SqliteConnection);

impl Sqlite {
    pub async fn open(url: &str) -> Result<Sqlite, Trouble> {
        let options: SqliteConnectOptions = options(url)?;
        let place = format!("cannot open the SQLite database {}", options.get_filename().display());
        let opened = options.create_if_missing(false).disable_statement_logging().connect().await;
        opened.map(Sqlite).map_err(|error| Trouble::from(error).context(place))
    }

    pub async fn columns(&mut self, relation: &Relation) -> Result<Vec<Column>, Trouble> {
        let statement = (&mut self.0).prepare(Sql::new(Dialect::Sqlite, &relation.whole).text().into_sql_str()).await?;
        Ok(statement.columns().iter().map(|found| column(relation, found.name().to_owned())).collect())
    }

    pub async fn primary_key(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        let sql = "SELECT name FROM pragma_table_info(?, ?) WHERE pk > 0 ORDER BY pk";
        sqlx::query_scalar(sql).bind(table.name.clone()).bind(table.schema.clone()).fetch_all(&mut self.0).await
    }

    /// The columns that are NOT NULL. Those of a primary key need not be.
    pub async fn never_null(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        let sql = "SELECT name FROM pragma_table_info(?, ?) WHERE \"notnull\" = 1";
        sqlx::query_scalar(sql).bind(table.name.clone()).bind(table.schema.clone()).fetch_all(&mut self.0).await
    }

    /// The columns of unique indexes, each with its index; an expression has no name.
    pub async fn unique_columns(&mut self, table: &Table) -> sqlx::Result<Vec<(String, String)>> {
        let sql = "SELECT list.name, coalesce(info.name, '')
                   FROM pragma_index_list(?, ?) AS list, pragma_index_info(list.name, ?) AS info
                   WHERE list.\"unique\" = 1 AND list.partial = 0";
        let (name, schema) = (table.name.clone(), table.schema.clone());
        sqlx::query_as(sql).bind(name).bind(schema.clone()).bind(schema).fetch_all(&mut self.0).await
    }

    pub async fn exists(&mut self, sql: &Sql) -> sqlx::Result<bool> {
        let query = bind(sqlx::query(sql.text()), &sql.values).persistent(false);
        Ok(query.fetch_optional(&mut self.0).await?.is_some())
    }

    /// Runs statements that give nothing.
    pub async fn set(&mut self, sql: &Sql) -> sqlx::Result<()> {
        self.0.execute(sqlx::raw_sql(sql.text())).await.map(drop)
    }

    /// Fails where the session has ended.
    pub async fn ping(&mut self) -> sqlx::Result<()> {
        self.0.ping().await
    }

    /// Returns how many rows were touched.
    pub async fn execute(&mut self, sql: &Sql) -> sqlx::Result<u64> {
        Ok(bind(sqlx::query(sql.text()), &sql.values).execute(&mut self.0).await?.rows_affected())
    }

    /// The text that `sql` selects, where there is one.
    pub async fn text(&mut self, sql: &Sql) -> sqlx::Result<Option<String>> {
        let row = bind(sqlx::query(sql.text()), &sql.values).persistent(false).fetch_optional(&mut self.0).await?;
        row.map_or(Ok(None), |row| row.try_get(0))
    }

    /// The first column of the first row.
    pub async fn answer(&mut self, sql: &Sql) -> sqlx::Result<Option<String>> {
        let row = self.0.fetch_optional(sqlx::raw_sql(sql.text())).await?;
        let value = row.map_or(Ok(None), |row| value(&row, 0))?;
        Ok(value.map(|value| value.text().into_owned()))
    }

    /// How the database would run it, step by step.
    pub async fn explain(&mut self, sql: &Sql) -> sqlx::Result<Vec<String>> {
        let sql = sql.explained("EXPLAIN QUERY PLAN");
        let rows = bind(sqlx::query(sql.text()), &sql.values).persistent(false).fetch_all(&mut self.0).await?;
        rows.iter().map(|row| row.try_get_unchecked(3)).collect()
    }

    pub async fn read(&mut self, sql: &Sql, scan: &Scan, filling: &mut Filling<'_>) -> Result<(), Trouble> {
        let (mut key, mut others) = (Vec::with_capacity(scan.key.len()), Vec::with_capacity(scan.others.len()));
        let mut rows = bind(sqlx::query(sql.text()), &sql.values).fetch(&mut self.0);
        while let Some(row) = rows.try_next().await? {
            for at in 0..scan.key.len() {
                key.push(present(value(&row, at)?, scan)?);
            }
            others.clear();
            for at in (scan.key.len()..).take(scan.others.len()) {
                others.push(value(&row, at)?);
            }
            if !filling.add(&mut key, &others) {
                // To its end: an answer that is half read would stay open while the chunk is served.
                while rows.try_next().await?.is_some() {}
                break;
            }
        }
        Ok(())
    }

    /// Runs the statement, and `mark` with it, which has to touch one row; where either must not stay all is as before.
    pub async fn run(&mut self, statement: &Statement, chunk: &Chunk, mark: Option<&Sql>) -> sqlx::Result<Ran> {
        let rows = chunk.changes.len();
        let keys = match chunk.key.len() {
            1 => vec!["?"; rows].join(","),
            columns => format!("VALUES {}", vec![format!("({})", vec!["?"; columns].join(",")); rows].join(",")),
        };
        let sql = Sql::new(Dialect::Sqlite, statement.with(&keys));
        let mut query = sqlx::query(sql.text());
        for _ in 0..statement.places() {
            query = bind(query, &chunk.values);
        }
        // A transaction that turns from reader to writer fails at once where another has written; this one waits.
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let touched = query.execute(&mut *transaction).await?.rows_affected();
        let is_marked = match mark {
            Some(mark) => {
                bind(sqlx::query(mark.text()), &mark.values).execute(&mut *transaction).await?.rows_affected() == 1
            }
            None => true,
        };
        let ran = Ran { touched, is_marked };
        if ran.stays(chunk) {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(ran)
    }
}

fn column(relation: &Relation, name: String) -> Column {
    let column = relation.column(&name);
    // Equal may be 1 and 1.0, and by its collation 'a' and 'A'.
    let differs = Some(format!("quote({column}) <> quote(?)"));
    let (kind, bind) = (Kind::Dynamic, "?".to_owned());
    Column { name, kind, read: column, bind, differs, unfit: None, is_zoned: false, shown: None }
}

fn bind<'q>(
    query: Query<'q, sqlx::Sqlite, SqliteArguments>,
    values: &[Value],
) -> Query<'q, sqlx::Sqlite, SqliteArguments> {
    values.iter().fold(query, |query, value| match value {
        Value::Integer(number) => query.bind(*number),
        Value::Real(number) => query.bind(*number),
        Value::Bytes(bytes) => query.bind(bytes.clone()),
        other => query.bind(other.text().into_owned()),
    })
}

fn value(row: &SqliteRow, at: usize) -> sqlx::Result<Option<Value>> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(None);
    }
    let value = match raw.type_info().name() {
        "INTEGER" => Value::Integer(row.try_get_unchecked(at)?),
        "REAL" => Value::Real(row.try_get_unchecked(at)?),
        "TEXT" => Value::Text(row.try_get_unchecked(at)?),
        _ => Value::Bytes(row.try_get_unchecked(at)?),
    };
    Ok(Some(value))
}
