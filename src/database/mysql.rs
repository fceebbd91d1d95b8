//! MySQL and MariaDB: each value is bound by its own type, since their comparisons of mixed types are not exact.

use futures_util::TryStreamExt as _;
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlConnection, MySqlRow, MySqlTypeInfo};
use sqlx::query::Query;
use sqlx::{
    Column as _, ConnectOptions, Connection, Executor, Row as _, SqlSafeStr as _, Statement as _, Type, TypeInfo as _,
};

use super::chunk::{Chunk, Filling};
use super::column::{Column, Kind};
use super::relation::Relation;
use super::scan::Scan;
use super::sql::{Sql, Table};
use super::statement::{Dialect, Statement};
use super::trouble::Trouble;
use super::tuple::one_of;
use super::value::Value;
use super::{Ran, decimal, my_cnf, options, present};

/// The protocol counts the values of a statement in 16 bits.
pub(super) const MOST_VALUES: usize = 65_535;

pub(super) struct MySql(MySqlConnection);

impl MySql {
    pub async fn open(url: &str) -> Result<MySql, Trouble> {
        let options: MySqlConnectOptions = my_cnf::complete(options(url)?, url);
        let place = format!("cannot connect to MySQL or MariaDB at {}:{}", options.get_host(), options.get_port());
        // The operator's SQL means what it means in the server's own client: sqlx would make `||` join strings and
        // move NOW() to UTC. Its log of slow statements would show that SQL as a warning.
        let options = options.pipes_as_concat(false).no_engine_substitution(false).timezone(None);
        let opened = options.disable_statement_logging().connect().await;
        opened.map(MySql).map_err(|error| Trouble::from(error).context(place))
    }

    pub async fn estimate(&mut self, table: &Table) -> sqlx::Result<Option<i64>> {
        let sql = "SELECT CAST(table_rows AS SIGNED) FROM information_schema.tables
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let rows = sqlx::query_scalar(sql).bind(&table.schema).bind(&table.name);
        Ok(rows.fetch_optional(&mut self.0).await?.flatten())
    }

    pub async fn columns(&mut self, relation: &Relation) -> Result<Vec<Column>, Trouble> {
        let statement = (&mut self.0).prepare(Sql::new(Dialect::MySql, &relation.whole).text().into_sql_str()).await?;
        let columns = statement.columns().iter();
        let mut columns: Vec<_> =
            columns.map(|found| column(relation, found.name().to_owned(), found.type_info())).collect();
        if columns.iter().any(|column| column.is_zoned) && !is_plain(&self.time_zone().await?) {
            for column in columns.iter_mut().filter(|column| column.is_zoned) {
                column.unfit = Some(
                    "in this time zone a TIMESTAMP may be written alike at two times; --session-sql \"SET time_zone = \
                     '+00:00'\" makes it fit",
                );
            }
        }
        if let Some(table) = &relation.table
            && columns.iter().any(|column| column.kind == Kind::Literal)
        {
            let digits = self.decimals(table).await?;
            for column in columns.iter_mut().filter(|column| column.kind == Kind::Literal) {
                match digits.iter().find(|(name, ..)| *name == column.name) {
                    Some((_, before, behind)) => column.bind = decimal::exact(*before, *behind),
                    None => column.unfit = Some("information_schema does not tell how many digits it has"),
                }
            }
        }
        Ok(columns)
    }

    /// The DECIMAL columns, each with how many digits it has before the point and behind it.
    async fn decimals(&mut self, table: &Table) -> sqlx::Result<Vec<(String, i64, i64)>> {
        let sql = "SELECT column_name, CAST(numeric_precision - numeric_scale AS SIGNED), CAST(numeric_scale AS SIGNED)
                   FROM information_schema.columns
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND data_type = 'decimal'";
        sqlx::query_as(sql).bind(&table.schema).bind(&table.name).fetch_all(&mut self.0).await
    }

    /// The time zone of the session: `+02:00`, or its name.
    pub async fn time_zone(&mut self) -> sqlx::Result<String> {
        let zone = "SELECT IF(@@session.time_zone = 'SYSTEM', @@system_time_zone, @@session.time_zone)";
        let zone = self.answer(&Sql::new(Dialect::MySql, zone)).await?.unwrap_or_default();
        Ok(if matches!(zone.as_str(), "UTC" | "GMT" | "Etc/UTC") { "+00:00".to_owned() } else { zone })
    }

    pub async fn primary_key(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        let sql = "SELECT column_name FROM information_schema.statistics
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND index_name = 'PRIMARY'
                   ORDER BY seq_in_index";
        sqlx::query_scalar(sql).bind(&table.schema).bind(&table.name).fetch_all(&mut self.0).await
    }

    /// The columns that are NOT NULL.
    pub async fn never_null(&mut self, table: &Table) -> sqlx::Result<Vec<String>> {
        let sql = "SELECT column_name FROM information_schema.columns JOIN information_schema.tables
                   USING (table_schema, table_name)
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND is_nullable = 'NO'
                   AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED')";
        sqlx::query_scalar(sql).bind(&table.schema).bind(&table.name).fetch_all(&mut self.0).await
    }

    /// The columns of unique indexes, each with its index; an expression has no name.
    pub async fn unique_columns(&mut self, table: &Table) -> sqlx::Result<Vec<(String, String)>> {
        let sql = "SELECT index_name, COALESCE(column_name, '') FROM information_schema.statistics
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0";
        sqlx::query_as(sql).bind(&table.schema).bind(&table.name).fetch_all(&mut self.0).await
    }

    /// The engine of the table, where that knows no transactions.
    pub async fn engine_without_transactions(&mut self, table: &Table) -> sqlx::Result<Option<String>> {
        let sql =
            "SELECT CAST(engine AS CHAR) FROM information_schema.tables JOIN information_schema.engines USING (engine)
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND transactions = 'NO'";
        sqlx::query_scalar(sql).bind(&table.schema).bind(&table.name).fetch_optional(&mut self.0).await
    }

    pub async fn exists(&mut self, sql: &Sql) -> sqlx::Result<bool> {
        let query = bind(sqlx::query(sql.text()), &sql.values).persistent(false);
        Ok(query.fetch_optional(&mut self.0).await?.is_some())
    }

    /// Runs statements that give nothing.
    pub async fn set(&mut self, sql: &Sql) -> sqlx::Result<()> {
        self.0.execute(sqlx::raw_sql(sql.text())).await.map(drop)
    }

    /// Says good-bye: a server notes whoever just goes.
    pub async fn close(self) {
        if let Err(error) = self.0.close().await {
            log::debug!("the session has ended otherwise: {error}");
        }
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

    /// The first column of the first row. What is not prepared comes as text, whatever its type is.
    pub async fn answer(&mut self, sql: &Sql) -> sqlx::Result<Option<String>> {
        let row = self.0.fetch_optional(sqlx::raw_sql(sql.text())).await?;
        row.map_or(Ok(None), |row| row.try_get_unchecked(0))
    }

    /// How the database would run it, as JSON.
    pub async fn explain(&mut self, sql: &Sql) -> sqlx::Result<String> {
        let sql = sql.explained("EXPLAIN FORMAT=JSON");
        bind(sqlx::query(sql.text()), &sql.values).persistent(false).fetch_one(&mut self.0).await?.try_get_unchecked(0)
    }

    pub async fn read(&mut self, sql: &Sql, scan: &Scan, filling: &mut Filling<'_>) -> Result<(), Trouble> {
        let (mut key, mut others) = (Vec::with_capacity(scan.key.len()), Vec::with_capacity(scan.others.len()));
        let mut rows = bind(sqlx::query(sql.text()), &sql.values).fetch(&mut self.0);
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

    /// Runs the statement, and `mark` with it, which has to touch one row; where either must not stay all is as before.
    pub async fn run(&mut self, statement: &Statement, chunk: &Chunk, mark: Option<&Sql>) -> sqlx::Result<Ran> {
        let one = chunk.key.iter().map(|column| column.bind.as_str()).collect::<Vec<_>>().join(",");
        let one = if chunk.key.len() == 1 { one } else { format!("({one})") };
        let keys = vec![one; chunk.changes.len()].join(",");
        let condition = |names: &[String]| one_of(names, &chunk.key, chunk.changes.len());
        let sql = Sql::new(Dialect::MySql, statement.with_columns(chunk.key.len(), &keys, condition));
        let mut query = sqlx::query(sql.text());
        for _ in 0..statement.places() {
            query = bind(query, &chunk.values);
        }
        let mut transaction = self.0.begin().await?;
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

fn column(relation: &Relation, name: String, info: &MySqlTypeInfo) -> Column {
    let column = relation.column(&name);
    let (kind, unfit) = (kind(info), unfit(info));
    let read = match info.name() {
        // Their unsigned forms do not show in the type; CHAR, since no date is decoded here.
        "BOOLEAN" | "YEAR" => format!("CAST({column} AS SIGNED)"),
        "DATE" | "TIME" | "DATETIME" | "TIMESTAMP" => format!("CAST({column} AS CHAR)"),
        _ => column.clone(),
    };
    let differs = match kind {
        // Equal by most collations are 'a' and 'A', 'a' and 'a '.
        Kind::Text => Some(format!("HEX(CONVERT({column} USING utf8mb4)) <> HEX(?)")),
        _ => None,
    };
    // A string is compared with a decimal as a double.
    let bind = if kind == Kind::Literal { decimal::OF_QUERY } else { "?" };
    let shown = match info.name() {
        "FLOAT" => Some((Kind::Literal, format!("CAST({column} AS CHAR)"))),
        "GEOMETRY" => Some((Kind::Text, format!("ST_AsText({column})"))),
        "JSON" => Some((Kind::Json, format!("CAST({column} AS CHAR)"))),
        _ if unfit.is_some() => Some((Kind::Text, format!("CAST({column} AS CHAR)"))),
        _ => None,
    };
    let is_zoned = info.name() == "TIMESTAMP";
    Column { name, kind, read, bind: bind.to_owned(), differs, unfit, is_zoned, shown }
}

/// Why a column of this type cannot be part of a key.
fn unfit(info: &MySqlTypeInfo) -> Option<&'static str> {
    match info.name() {
        // ORDER BY sorts these by number, `>` compares them as text: rows would be left out. Of a SET sqlx tells
        // only in its Debug text.
        "ENUM" | "SET" => Some("an ENUM or SET is sorted one way and compared another"),
        _ if format!("{info:?}").contains("SET)") || format!("{info:?}").contains("SET |") => {
            Some("an ENUM or SET is sorted one way and compared another")
        }
        "FLOAT" => Some("a FLOAT does not equal its own text"),
        "GEOMETRY" => Some("its values have no order"),
        _ => None,
    }
}

fn kind(info: &MySqlTypeInfo) -> Kind {
    match info.name() {
        "BIT" => Kind::Unsigned,
        "BOOLEAN" | "YEAR" => Kind::Integer,
        name if name.contains("INT") && name.ends_with("UNSIGNED") => Kind::Unsigned,
        name if name.contains("INT") => Kind::Integer,
        "DOUBLE" => Kind::Real,
        "DECIMAL" => Kind::Literal,
        "DATE" | "TIME" | "DATETIME" | "TIMESTAMP" | "JSON" => Kind::Text,
        _ if <str as Type<sqlx::MySql>>::compatible(info) => Kind::Text,
        _ => Kind::Bytes,
    }
}

/// Whether it is a time zone in which no hour comes twice.
fn is_plain(zone: &str) -> bool {
    zone.starts_with(['+', '-'])
}

/// Without the zeros of ZEROFILL, which JSON does not allow.
fn unpadded(text: String) -> String {
    let digits = text.trim_start_matches('0');
    match digits.bytes().next() {
        Some(b'0'..=b'9') => digits.to_owned(),
        _ if text.len() - digits.len() > 1 => format!("0{digits}"),
        _ => text,
    }
}

fn bind<'q>(query: Query<'q, sqlx::MySql, MySqlArguments>, values: &[Value]) -> Query<'q, sqlx::MySql, MySqlArguments> {
    values.iter().fold(query, |query, value| match value {
        Value::Integer(number) => query.bind(*number),
        Value::Unsigned(number) => query.bind(*number),
        Value::Real(number) => query.bind(*number),
        Value::Literal(text) | Value::Text(text) => query.bind(text.clone()),
        Value::Bytes(bytes) => query.bind(bytes.clone()),
    })
}

fn value(row: &MySqlRow, at: usize, kind: Kind) -> sqlx::Result<Option<Value>> {
    Ok(match kind {
        Kind::Integer => row.try_get_unchecked::<Option<i64>, _>(at)?.map(Value::Integer),
        Kind::Unsigned => row.try_get_unchecked::<Option<u64>, _>(at)?.map(Value::Unsigned),
        Kind::Real => row.try_get_unchecked::<Option<f64>, _>(at)?.map(Value::Real),
        Kind::Literal => row.try_get_unchecked::<Option<String>, _>(at)?.map(|text| Value::Literal(unpadded(text))),
        Kind::Json => row.try_get_unchecked::<Option<String>, _>(at)?.map(Value::Literal),
        Kind::Text => row.try_get_unchecked::<Option<String>, _>(at)?.map(Value::Text),
        Kind::Bytes | Kind::Dynamic => row.try_get_unchecked::<Option<Vec<u8>>, _>(at)?.map(Value::Bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_zones_with_summer_time_an_hour_comes_twice() {
        assert_eq!(["+00:00", "-05:30"].map(is_plain), [true; 2]);
        assert_eq!(["Europe/Berlin", "CEST", "EST", ""].map(is_plain), [false; 4]);
    }

    #[test]
    fn a_number_has_no_zeros_in_front_of_it() {
        for (text, expected) in
            [("000001.50", "1.50"), ("0.50", "0.50"), ("0000.50", "0.50"), ("000", "0"), ("-0.5", "-0.5"), ("10", "10")]
        {
            assert_eq!(unpadded(text.to_owned()), expected);
        }
    }
}
