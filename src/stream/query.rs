//! A question to a database whose answer says whether a run has to wait.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;

use super::failure;
use crate::database::{Database, Question, Trouble};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A number above 0 says wait.
pub struct Query {
    url: String,
    question: Question,
    /// A connection of its own: that of the source is read from at the same time.
    database: Option<Database>,
}

impl Query {
    /// Connects when it looks.
    pub fn new(url: String, question: Question) -> Query {
        Query { url, question, database: None }
    }

    /// The number that says wait, if that is the answer. After a failure the next look connects anew.
    pub async fn look(&mut self) -> Result<Option<f64>> {
        let mut database = match self.database.take() {
            Some(database) => database,
            None => Database::open(&self.url).await.map_err(failure).context("the throttle query")?,
        };
        let answer = match timeout(ANSWER, database.number(&self.question)).await {
            Ok(answer) => answer,
            Err(elapsed) => {
                Err(Trouble::Away(anyhow::Error::new(elapsed).context(format!("no answer within {ANSWER:?}"))))
            }
        };
        let number = answer.map_err(failure).context("the throttle query")?;
        self.database = Some(database);
        Ok(number.filter(|number| *number > 0.0))
    }
}
