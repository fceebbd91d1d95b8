//! Whether a kept offset still belongs to the log that is there, and what an operator may accept to be lost.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, anyhow};

use crate::mutants::Mutant;
use crate::record::LastRecord;
use crate::topic::{Epoch, Offset, TopicId, TopicPartition};

/// Where the reading of a partition stands, and which log that offset belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub offset: Offset,
    /// `None` where only the offset is known: the gem or a person wrote it.
    pub topic_id: Option<TopicId>,
    pub leader_epoch: Option<i32>,
    /// The last record that was read; after it there may be what no consumer is given.
    pub last: Option<LastRecord>,
    /// The last record that the operator had passed without being worked on.
    pub skipped: Option<Offset>,
}

impl Standing {
    /// Only where this offset is.
    pub fn at(offset: Offset) -> Standing {
        Standing { offset, topic_id: None, leader_epoch: None, last: None, skipped: None }
    }

    /// The topic's id, where the brokers tell this one now: that some tell none takes nothing away from what is known.
    pub fn id_with(&self, told: TopicId) -> TopicId {
        if told.is_known() { told } else { self.topic_id.unwrap_or(told) }
    }

    /// By which the broker can tell whether the log was cut off before the offset.
    pub fn epoch(&self) -> Option<Epoch> {
        // A control record after the last one may be of a later epoch, in a log that nobody has cut off.
        let end = self.last.map_or(self.offset, |last| last.offset.next().min(self.offset));
        self.leader_epoch.map(|number| Epoch { number, end })
    }
}

/// A record that the operator has passed without being worked on, `products/0@4711`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    pub partition: TopicPartition,
    pub offset: Offset,
}

impl FromStr for Skip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Skip> {
        let parse = || {
            let (partition, offset) = text.rsplit_once('@')?;
            let (topic, partition) = partition.rsplit_once('/')?;
            let partition = topic.parse::<crate::topic::Topic>().ok()?.partition(partition.parse().ok()?);
            Some(Skip { partition, offset: Offset(offset.parse().ok().filter(|offset| *offset >= 0)?) })
        };
        parse().with_context(|| format!("'{text}' is not a record such as products/0@4711"))
    }
}

/// The log of a partition, as its leader describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub topic_id: TopicId,
    pub begin: Offset,
    /// The offset that the next record will have.
    pub end: Offset,
    /// The broker says that the log was cut off before the kept offset, whatever came after that.
    pub is_cut: bool,
    pub last: There,
}

/// What is there now in the place of the last record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// It was not looked at, or compaction may have taken the record.
    Unknown,
    /// No record that a consumer is given.
    Nothing,
    Record(LastRecord),
}

impl There {
    /// What is wrong with the record that was read there, where something is.
    fn differs_from(self, read: LastRecord) -> Option<&'static str> {
        match self {
            There::Nothing => Some("that was read is not there any more"),
            There::Record(there) if there != read => Some("is not the one that was read there"),
            There::Unknown | There::Record(_) => None,
        }
    }
}

/// A loss that the operator accepts, `products/0:100-4711@TOPICID`: of this partition, from the kept offset to the one
/// where it goes on, in the topic with this id. It fits no other loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptLoss {
    pub partition: TopicPartition,
    pub from: Offset,
    pub to: Offset,
    pub topic_id: TopicId,
}

impl FromStr for AcceptLoss {
    type Err = Error;

    fn from_str(text: &str) -> Result<AcceptLoss> {
        let parse = || {
            let (partition, rest) = text.rsplit_once(':')?;
            let (topic, partition) = partition.rsplit_once('/')?;
            let (range, id) = rest.split_once('@')?;
            let (from, to) = range.split_once('-')?;
            Some(AcceptLoss {
                partition: topic.parse::<crate::topic::Topic>().ok()?.partition(partition.parse().ok()?),
                from: Offset(from.parse().ok()?),
                to: Offset(to.parse().ok()?),
                topic_id: id.parse().ok()?,
            })
        };
        parse()
            .with_context(|| format!("'{text}' is not what an error has printed, such as products/0:100-4711@TOPICID"))
    }
}

impl fmt::Display for AcceptLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}@{}", self.partition, self.from, self.to, self.topic_id)
    }
}

/// Where to go on reading.
///
/// Fails where records between the kept offset and the log are lost, unless that very loss is accepted; the error says
/// which option accepts it.
pub fn fit(partition: &TopicPartition, kept: Standing, log: Log, accepted: &[AcceptLoss]) -> Result<Offset> {
    let Standing { offset, topic_id, .. } = kept;
    let is_other = |id: &TopicId| id.differs_from(log.topic_id) && !Mutant::IgnoresTopicId.is_on();
    let trouble = if let Some(id) = topic_id.filter(is_other) {
        anyhow!("the topic was deleted and made again (its id was {id}): what followed offset {offset} is lost")
    } else if offset < log.begin {
        anyhow!("the log begins at {} now: the records from {offset} to {} are lost", log.begin, log.begin.0 - 1)
    } else if offset > log.end {
        anyhow!("the log ends at {} now, before the kept offset {offset}: it was truncated", log.end)
    } else if log.is_cut {
        anyhow!("the log was truncated before the kept offset {offset}, and other records came after that")
    } else if let Some(read) = kept.last
        && let Some(difference) = log.last.differs_from(read)
    {
        anyhow!(
            "the record at offset {} {difference}: the topic was made again or truncated, and what followed offset {offset} is \
             lost",
            read.offset
        )
    } else {
        return Ok(offset);
    };
    let loss = AcceptLoss { partition: partition.clone(), from: offset, to: log.begin, topic_id: log.topic_id };
    if accepted.contains(&loss) {
        log::warn!("{partition}: {trouble}; that was accepted: going on from {}", loss.to);
        return Ok(loss.to);
    }
    Err(trouble
        .context(format!("to go on from offset {}, the first one there, start with --accept-loss {loss}", loss.to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: TopicId = TopicId(2);

    fn fit_of(offset: i64, id: Option<TopicId>, accepted: &[AcceptLoss]) -> Result<Offset> {
        let products: crate::topic::Topic = "products".parse().unwrap();
        let kept = Standing { topic_id: id, ..Standing::at(Offset(offset)) };
        let log = Log { topic_id: NOW, begin: Offset(50), end: Offset(100), is_cut: false, last: There::Unknown };
        fit(&products.partition(3), kept, log, accepted)
    }

    #[test]
    fn an_offset_in_a_log_that_was_cut_off_before_it_does_not_fit() {
        let partition = "products".parse::<crate::topic::Topic>().unwrap().partition(3);
        let log = Log { topic_id: NOW, begin: Offset(50), end: Offset(100), is_cut: true, last: There::Unknown };
        let error = format!("{:#}", fit(&partition, Standing::at(Offset(70)), log, &[]).unwrap_err());
        assert!(error.contains(&format!("--accept-loss products/3:70-50@{NOW}")), "{error}");
        assert!(error.ends_with("truncated before the kept offset 70, and other records came after that"), "{error}");
    }

    #[test]
    fn without_an_id_a_log_is_recognised_by_the_last_record_that_was_read() {
        let partition = "products".parse::<crate::topic::Topic>().unwrap().partition(3);
        let record = |crc32c| LastRecord { offset: Offset(68), ts: Some(1), crc32c };
        let fit_to = |topic_id, last| {
            let kept = Standing { topic_id: Some(TopicId(0)), last: Some(record(7)), ..Standing::at(Offset(70)) };
            let log = Log { topic_id, begin: Offset(50), end: Offset(100), is_cut: false, last };
            fit(&partition, kept, log, &[])
        };
        for id in [TopicId(0), NOW] {
            for same in [There::Record(record(7)), There::Unknown] {
                assert_eq!(fit_to(id, same).unwrap(), Offset(70));
            }
            for (other, difference) in [
                (There::Record(record(8)), "is not the one that was read there"),
                (There::Nothing, "that was read is not there any more"),
            ] {
                let error = format!("{:#}", fit_to(id, other).unwrap_err());
                let told = format!("--accept-loss products/3:70-50@{id}: the record at offset 68 {difference}: ");
                assert!(error.contains(&told), "{error}");
                assert!(error.ends_with("made again or truncated, and what followed offset 70 is lost"), "{error}");
            }
        }
    }

    #[test]
    fn an_id_that_is_known_stays_known_where_brokers_tell_none() {
        for (kept, told, expected) in [(Some(1), 0, 1), (Some(1), 2, 2), (Some(0), 2, 2), (None, 0, 0)] {
            let standing = Standing { topic_id: kept.map(TopicId), ..Standing::at(Offset(70)) };
            assert_eq!(standing.id_with(TopicId(told)), TopicId(expected));
        }
    }

    #[test]
    fn an_epoch_counts_up_to_the_last_record_that_was_read() {
        let last = |offset| Some(LastRecord { offset: Offset(offset), ts: None, crc32c: 0 });
        let epoch = |last| Standing { leader_epoch: Some(3), last, ..Standing::at(Offset(70)) }.epoch();
        for (last, end) in [(None, 70), (last(69), 70), (last(66), 67), (last(75), 70)] {
            assert_eq!(epoch(last), Some(Epoch { number: 3, end: Offset(end) }));
        }
        assert_eq!(Standing { last: last(69), ..Standing::at(Offset(70)) }.epoch(), None);
    }

    #[test]
    fn a_record_to_skip_is_written_as_an_error_prints_it() {
        let skip: Skip = "products/0@4711".parse().unwrap();
        assert_eq!((skip.partition.to_string(), skip.offset), ("products/0".to_owned(), Offset(4711)));
        for text in ["products@4711", "products/0", "products/0@-1", "products/0@x", "/0@1"] {
            assert_eq!(
                text.parse::<Skip>().unwrap_err().to_string(),
                format!("'{text}' is not a record such as products/0@4711")
            );
        }
    }

    #[test]
    fn an_offset_in_its_own_log_fits() {
        for offset in [50, 70, 100] {
            assert_eq!(fit_of(offset, Some(NOW), &[]).unwrap(), Offset(offset));
            assert_eq!(fit_of(offset, None, &[]).unwrap(), Offset(offset));
        }
    }

    #[test]
    fn a_loss_is_named_and_only_its_own_option_accepts_it() {
        for (offset, id, text) in [
            (20, Some(NOW), "the records from 20 to 49 are lost"),
            (120, None, "it was truncated"),
            (70, Some(TopicId(1)), "deleted and made again"),
        ] {
            let error = format!("{:#}", fit_of(offset, id, &[]).unwrap_err());
            assert!(error.contains(text), "{error}");
            let option = format!("products/3:{offset}-50@{NOW}");
            assert!(error.contains(&format!("--accept-loss {option}")), "{error}");
            let accepted: AcceptLoss = option.parse().unwrap();
            assert_eq!(fit_of(offset, id, std::slice::from_ref(&accepted)).unwrap(), Offset(50));
            assert!(fit_of(offset + 1, Some(TopicId(1)), &[accepted]).is_err());
        }
    }

    #[test]
    fn what_no_error_has_printed_is_not_accepted() {
        for text in ["", "products/0", "products/0:1-2", "products/0:1-2@x", "products:1-2@0"] {
            assert!(text.parse::<AcceptLoss>().is_err(), "{text}");
        }
    }
}
