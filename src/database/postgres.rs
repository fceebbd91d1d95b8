//! Postgres: integers travel in binary, every other key as its text, cast back to the exact type.

use futures_util::TryStreamExt as _;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Column as _, ConnectOptions, Connection, Executor, Row as _};

use super::chunk::{Chunk, Filling};
use super::column::{Column, Kind};
use super::relation::Relation;
use super::scan::Scan;
use super::sql::{Sql, Table};
use super::statement::{Dialect, Statement};
use super::trouble::Trouble;
use super::value::Value;
use super::{Ran, options, present};

/// How long the name of a session may be, in bytes; the server cuts off what is more.
const LONGEST_NAME: usize = 63;

pub(super) struct Postgres(PgConnection);

impl Postgres {
    /// `name` is how the name begins that the server shows it by, where the URL says nothing of that.
    pub async fn open(url: &str, name: Option<&str>) -> Result<Postgres, Trouble> {
        let mut options: PgConnectOptions = options(url)?;
        if options.get_application_name().is_none() {
            options = options.application_name(&distinct(name.unwrap_or("ksync-stream"), rand::random()));
        }
        let place = format!("cannot connect to Postgres at {}:{}", options.get_host(), options.get_port());
        // Its log of slow statements would show the operator's SQL as a warning.
        let opened = options.disable_statement_logging().connect().await;
        opened.map(Postgres).map_err(|error| Trouble::from(error).context(place))
    }

    pub async fn estimate(&mut self, table: &Table) -> sqlx::Result<Option<i64>> {
        let name = table.quoted(Dialect::Postgres);
        let sql = "SELECT reltuples::int8 FROM pg_class WHERE oid = $1::text::regclass";
        sqlx::query_scalar(sql).bind(name).fetch_optional(&mut self.0).await
    }

    pub async fn columns(&mut self, relation: &Relation) -> Result<Vec<Column>, Trouble> {
        // One row of NULLs, which no row of the source has to be read for. Not prepared: sqlx would look up each
        // column's type, and knows not every kind of type there is.
        let text = format!("SELECT t.* FROM (SELECT) AS one LEFT JOIN (SELECT * FROM {}) AS t ON false", relation.from);
        let row = self.0.fetch_one(sqlx::raw_sql(Sql::new(Dialect::Postgres, text).text())).await?;
        let names = row.columns().iter().map(|column| column.name().to_owned());
        let oids = row.columns().iter().map(|column| column.type_info().oid().unwrap_or(Oid(0))).collect::<Vec<_>>();
        // Not pg_typeof, and not the declared length: '1'::character would be cut to one character.
        let sql =
            "SELECT format_type(oid, -1) FROM unnest($1::oid[]) WITH ORDINALITY AS types (oid, place) ORDER BY place";
        let types: Vec<String> = sqlx::query_scalar(sql).bind(oids).fetch_all(&mut self.0).await?;
        Ok(names.zip(types).map(|(name, type_name)| column(relation, name, &type_name)).collect())
    }

    pub async fn primary_key(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        // A primary key's index may hold more columns than its key (INCLUDE).
        let sql = "SELECT attname::text FROM pg_index, unnest(indkey) WITH ORDINALITY AS keys (attnum, place)
                   JOIN pg_attribute USING (attnum)
                   WHERE indrelid = $1::text::regclass AND indisprimary AND attrelid = indrelid AND place <= indnkeyatts
                   ORDER BY place";
        sqlx::query_scalar(sql).bind(table.quoted(Dialect::Postgres)).fetch_all(&mut self.0).await
    }

    /// The columns that are NOT NULL. It is no promise of a foreign table, nor of tables that inherit from this one, nor where it
    /// holds for new rows only (NOT VALID, from Postgres 18 on).
    pub async fn never_null(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        let sql = "SELECT attname::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                   WHERE attrelid = $1::text::regclass AND attnotnull AND attnum > 0 AND NOT attisdropped
                   AND relkind IN ('r', 'p')
                   AND NOT EXISTS (SELECT FROM pg_constraint AS told WHERE told.conrelid = attrelid AND told.contype = 'n'
                                   AND NOT told.convalidated AND attnum = ANY (told.conkey))
                   AND NOT (relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = attrelid))";
        sqlx::query_scalar(sql).bind(table.quoted(Dialect::Postgres)).fetch_all(&mut self.0).await
    }

    /// The columns of unique indexes, each with its index. One says nothing of the rows of tables that inherit from its own.
    pub async fn unique_columns(&mut self, table: &Table) -> sqlx::Result<Vec<(String, String)>> {
        let sql = "SELECT indexrelid::text, attname::text
                   FROM pg_index, unnest(indkey) WITH ORDINALITY AS keys (attnum, place) JOIN pg_attribute USING (attnum)
                   WHERE indrelid = $1::text::regclass AND attrelid = indrelid AND place <= indnkeyatts
                   AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
                   AND NOT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhparent
                                   WHERE inhparent = indrelid AND relkind = 'r')";
        sqlx::query_as(sql).bind(table.quoted(Dialect::Postgres)).fetch_all(&mut self.0).await
    }

    pub async fn exists(&mut self, sql: &Sql) -> sqlx::Result<bool> {
        Ok(query(sql).persistent(false).fetch_optional(&mut self.0).await?.is_some())
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
        Ok(query(sql).execute(&mut self.0).await?.rows_affected())
    }

    /// The text that `sql` selects, where there is one.
    pub async fn text(&mut self, sql: &Sql) -> sqlx::Result<Option<String>> {
        let row = query(sql).persistent(false).fetch_optional(&mut self.0).await?;
        row.map_or(Ok(None), |row| row.try_get(0))
    }

    /// The first column of the first row. What is not prepared comes as text, whatever its type is.
    pub async fn answer(&mut self, sql: &Sql) -> sqlx::Result<Option<String>> {
        let row = self.0.fetch_optional(sqlx::raw_sql(sql.text())).await?;
        row.map_or(Ok(None), |row| row.try_get_unchecked(0))
    }

    /// How the database would run it, as JSON.
    pub async fn explain(&mut self, sql: &Sql) -> sqlx::Result<String> {
        let sql = sql.explained("EXPLAIN (FORMAT JSON)");
        query(&sql).persistent(false).fetch_one(&mut self.0).await?.try_get_unchecked(0)
    }

    pub async fn read(&mut self, sql: &Sql, scan: &Scan, filling: &mut Filling<'_>) -> Result<(), Trouble> {
        if scan.is_copied() {
            return self.copy(sql, scan, filling).await;
        }
        let (mut key, mut others) = (Vec::with_capacity(scan.key.len()), Vec::with_capacity(scan.others.len()));
        let mut rows = query(sql).fetch(&mut self.0);
        while let Some(row) = rows.try_next().await? {
            for (at, column) in scan.key.iter().enumerate() {
                key.push(present(value(&row, at, column.kind)?, scan)?);
            }
            others.clear();
            for (at, (kind, _)) in (scan.key.len()..).zip(&scan.others) {
                others.push(value(&row, at, *kind)?);
            }
            if !filling.add(&mut key, &others) {
                // To its end: an answer that is half read would stay open while the chunk is served.
                while rows.try_next().await?.is_some() {}
                break;
            }
        }
        Ok(())
    }

    /// The same for keys of integers.
    async fn copy(&mut self, sql: &Sql, scan: &Scan, filling: &mut Filling<'_>) -> Result<(), Trouble> {
        let mut key = Vec::with_capacity(scan.key.len());
        let mut rows = self.0.copy_out_raw(&sql.copied()).await?;
        while let Some(row) = rows.try_next().await? {
            for text in row.trim_ascii_end().split(|byte| *byte == b'\t') {
                let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                // NULL is \N.
                key.push(present(number.map(Value::Integer), scan)?);
            }
            if !filling.add(&mut key, &[]) {
                while rows.try_next().await?.is_some() {}
                break;
            }
        }
        Ok(())
    }

    /// Runs the statement, and `mark` with it, which has to touch one row; where either must not stay all is as before.
    pub async fn run(&mut self, statement: &Statement, chunk: &Chunk, mark: Option<&Sql>) -> sqlx::Result<Ran> {
        let sql = Sql::new(Dialect::Postgres, statement.with(&keys(&chunk.key)));
        let mut query = sqlx::query(sql.text());
        for (at, column) in chunk.key.iter().enumerate() {
            let values = chunk.keys().map(|key| &key[at]);
            query = match column.kind {
                Kind::Integer => query.bind(values.filter_map(Value::integer).collect::<Vec<_>>()),
                _ => query.bind(values.map(Value::text).collect::<Vec<_>>()),
            };
        }
        let mut transaction = self.0.begin().await?;
        let touched = query.execute(&mut *transaction).await?.rows_affected();
        let is_marked = match mark {
            Some(mark) => self::query(mark).execute(&mut *transaction).await?.rows_affected() == 1,
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

/// A name that no other session has: by it another one sees whether this one is still at work.
fn distinct(name: &str, number: u32) -> String {
    let end = format!("/{:06x}", number & 0xff_ffff);
    // Postgres writes what is not plain ASCII as `?`, from 16 on as `\xc3`, and cuts off what by that does not fit any more.
    let plain = name.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' });
    plain.take(LONGEST_NAME - end.len()).collect::<String>() + &end
}

/// What `:keys` becomes: the rows of one array for each column, each value of its column's exact type.
fn keys(key: &[Column]) -> String {
    let (mut values, mut arrays, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (at, column) in key.iter().enumerate() {
        let (name, array) = (format!("key{at}"), if column.kind == Kind::Integer { "int8" } else { "text" });
        values.push(column.bind.replacen("?", &format!("ksync_keys.{name}"), 1));
        arrays.push(format!("${}::{array}[]", at + 1));
        names.push(name);
    }
    format!("SELECT {} FROM unnest({}) AS ksync_keys ({})", values.join(", "), arrays.join(", "), names.join(", "))
}

fn column(relation: &Relation, name: String, type_name: &str) -> Column {
    let column = relation.column(&name);
    let kind = match type_name {
        "smallint" | "integer" | "bigint" => Kind::Integer,
        "numeric" | "real" | "double precision" | "oid" | "boolean" => Kind::Literal,
        _ => Kind::Text,
    };
    let has_no_order = matches!(type_name, "json" | "xml" | "point");
    // What has members has them in JSON, too; text says little of it.
    let is_json = matches!(type_name, "json" | "jsonb") || type_name.ends_with("[]");
    let is_integer = kind == Kind::Integer;
    Column {
        kind,
        read: if is_integer { format!("{column}::int8") } else { format!("{column}::text") },
        bind: if is_integer { format!("?::{type_name}") } else { format!("?::text::{type_name}") },
        // Equal for the database are 1.0 and 1.00, 'a' and 'A' as citext, or by a collation that is not deterministic.
        differs: (!is_integer).then(|| format!("? <> {column}::text COLLATE \"C\"")),
        unfit: has_no_order.then_some("its values have no order"),
        // Its text says the zone, too.
        is_zoned: false,
        shown: is_json.then(|| (Kind::Json, format!("to_json({column})::text"))),
        name,
    }
}

fn query(sql: &Sql) -> Query<'_, sqlx::Postgres, PgArguments> {
    sql.values.iter().fold(sqlx::query(sql.text()), |query, value| match value {
        Value::Integer(number) => query.bind(*number),
        other => query.bind(other.text().into_owned()),
    })
}

fn value(row: &PgRow, at: usize, kind: Kind) -> sqlx::Result<Option<Value>> {
    if kind == Kind::Integer {
        return Ok(row.try_get_unchecked::<Option<i64>, _>(at)?.map(Value::Integer));
    }
    let text = row.try_get_unchecked::<Option<String>, _>(at)?;
    if kind == Kind::Json {
        return Ok(text.map(Value::Literal));
    }
    // NaN and Infinity are no numbers in JSON.
    let is_literal = |text: &String| {
        kind == Kind::Literal
            && (matches!(text.as_str(), "true" | "false") || text.ends_with(|c: char| c.is_ascii_digit()))
    };
    Ok(text.map(|text| if is_literal(&text) { Value::Literal(text) } else { Value::Text(text) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_a_session_from_others_is_left_of_a_long_name_and_of_one_that_is_not_ascii() {
        assert_eq!(distinct("ksync-stream/products", 0xff00_00a7), "ksync-stream/products/0000a7");
        assert_eq!(distinct(&"x".repeat(100), 7), format!("{}/000007", "x".repeat(56)));
        assert_eq!(distinct("Größe\n", 7), "Gr??e?/000007");
        assert_eq!(distinct(&"ä".repeat(100), 7), format!("{}/000007", "?".repeat(56)));
    }
}
