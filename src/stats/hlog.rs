//! Histograms as others read them: HdrHistogram V2 interval logs, and single histograms as text.
//!
//! The log is the format of HdrHistogram's HistogramLogWriter, version 1.3, with a tag per stage and each histogram in
//! the V2 compressed encoding, so HistogramLogAnalyzer, HistogramLogProcessor and the libraries of other languages open it.

use std::io;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::latency::{Stage, StageHistogram, StageHistograms};

/// Writes an interval log to `W`.
pub struct HistogramLog<W> {
    out: W,
    base: SystemTime,
    serializer: V2DeflateSerializer,
}

impl<W: io::Write> HistogramLog<W> {
    /// Writes the head of a log that begins at `base`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(mut out: W, base: SystemTime) -> io::Result<HistogramLog<W>> {
        let mut serializer = V2DeflateSerializer::new();
        // The version has to be the first line. With a base time, intervals are relative to it in every reader.
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[ringway; times in nanoseconds, send_batch in packets]")
            .with_start_time(base)
            .with_base_time(base)
            .begin_log_with(&mut out, &mut serializer)?;
        writeln!(
            out,
            r#""StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram""#
        )?;
        Ok(HistogramLog { out, base, serializer })
    }

    /// Goes on with a log that began at `base`.
    pub fn resume(out: W, base: SystemTime) -> HistogramLog<W> {
        HistogramLog {
            out,
            base,
            serializer: V2DeflateSerializer::new(),
        }
    }

    /// When the log began.
    pub fn base(&self) -> SystemTime {
        self.base
    }

    /// Writes what was recorded from `start` for `length`: one line per stage that recorded anything.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn interval(&mut self, start: SystemTime, length: Duration, histograms: &StageHistograms) -> io::Result<()> {
        let since_base = start.duration_since(self.base).unwrap_or(Duration::ZERO);
        let mut log = IntervalLogWriterBuilder::new().begin_log_with(&mut self.out, &mut self.serializer)?;
        for histogram in histograms.iter().filter(|histogram| histogram.count() != 0) {
            let tag = Tag::new(histogram.stage().name());
            log.write_histogram(&histogram.values, since_base, length, tag)
                .map_err(|error| match error {
                    IntervalLogWriterError::IoError(error) => error,
                    IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
                })?;
        }
        Ok(())
    }

    /// The writer, to take what it holds.
    pub fn writer_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// The writer, to flush or close.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// A [`StageHistogram`] as text, for the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedHistogram {
    /// What was measured.
    pub stage: Stage,
    /// Values that were clamped up.
    pub below: u64,
    /// Values that were clamped down.
    pub above: u64,
    /// The V2 compressed encoding in base64, as in a log.
    pub values: String,
}

/// The text is no histogram of its stage.
#[derive(Debug, thiserror::Error)]
#[error("not a histogram of {}: {reason}", stage.name())]
pub struct DecodeError {
    stage: Stage,
    reason: String,
}

impl EncodedHistogram {
    /// Encodes `histogram`.
    pub fn encode(histogram: &StageHistogram) -> EncodedHistogram {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&histogram.values, &mut bytes)
            .expect("memory takes every byte, and counts below 2^63 encode");
        EncodedHistogram {
            stage: histogram.stage(),
            below: histogram.below,
            above: histogram.above,
            values: BASE64.encode(bytes),
        }
    }

    /// The histogram that was encoded.
    ///
    /// # Errors
    /// [`DecodeError`] when the text is damaged, or its values lie outside of the stage's bounds.
    pub fn decode(&self) -> Result<StageHistogram, DecodeError> {
        let failed = |reason: String| DecodeError {
            stage: self.stage,
            reason,
        };
        let bytes = BASE64.decode(&self.values).map_err(|error| failed(error.to_string()))?;
        let values: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| failed(error.to_string()))?;
        let mut histogram = StageHistogram::new(self.stage);
        histogram
            .values
            .add(values)
            .map_err(|error| failed(error.to_string()))?;
        (histogram.below, histogram.above) = (self.below, self.above);
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn recorded() -> StageHistograms {
        let mut set = StageHistograms::new();
        (0..1_000).for_each(|sample| set.record(Stage::TunToUdp, 5_000 + 37 * sample, 2));
        set.record(Stage::TunToUdp, 3, 1);
        set.record(Stage::SendBatch, 44, 7);
        set.record(Stage::Rtt, u64::MAX, 1);
        set
    }

    #[test]
    fn a_log_reads_back_with_its_times_tags_and_values() {
        let base = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let second = Duration::from_secs(1);
        let set = recorded();
        let mut log = HistogramLog::begin(Vec::new(), base).expect("memory");
        log.interval(base + second, second, &set).expect("memory");
        log.interval(base + 2 * second, second, &set).expect("memory");
        let bytes = log.into_inner();
        assert!(bytes.starts_with(b"#[Histogram log format version 1.3]\n"));

        let entries: Vec<LogEntry<'_>> = IntervalLogIterator::new(&bytes)
            .collect::<Result<_, _>>()
            .expect("the crate reads what it wrote");
        let since_epoch = base.duration_since(UNIX_EPOCH).expect("after 1970");
        assert_eq!(
            entries[..2],
            [LogEntry::StartTime(since_epoch), LogEntry::BaseTime(since_epoch)]
        );
        let tags = [Stage::TunToUdp, Stage::SendBatch, Stage::Rtt];
        let expected = [second, 2 * second]
            .into_iter()
            .flat_map(|start| tags.map(|stage| (start, stage)));
        assert_eq!(entries.len(), 2 + 6);
        for (entry, (start, stage)) in entries[2..].iter().zip(expected) {
            let LogEntry::Interval(interval) = entry else {
                panic!("not an interval: {entry:?}")
            };
            assert_eq!((interval.start_timestamp(), interval.duration()), (start, second));
            assert_eq!(interval.tag().expect("every line is tagged").as_str(), stage.name());
            let bytes = BASE64.decode(interval.encoded_histogram()).expect("base64");
            let values: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("V2");
            assert_eq!(values, set.stage(stage).values);
        }
    }

    #[test]
    fn a_histogram_survives_its_text() {
        for histogram in recorded().iter() {
            let json = serde_json::to_string(&EncodedHistogram::encode(histogram)).expect("plain values");
            let encoded: EncodedHistogram = serde_json::from_str(&json).expect("own output");
            assert_eq!(&encoded.decode().expect("own output"), histogram);
        }
    }

    #[test]
    fn damaged_text_is_an_error_that_names_the_stage() {
        let encoded = EncodedHistogram::encode(recorded().stage(Stage::TunToUdp));
        let truncated = encoded.values[..encoded.values.len() / 2 / 4 * 4].to_owned();
        for values in ["".to_owned(), "AAAA".to_owned(), "?".to_owned(), truncated] {
            let error = EncodedHistogram {
                values,
                ..encoded.clone()
            }
            .decode()
            .expect_err("damaged");
            assert!(error.to_string().contains("tun_to_udp"));
        }
        let of_another_stage = EncodedHistogram {
            stage: Stage::SendBatch,
            ..encoded
        };
        assert!(
            of_another_stage
                .decode()
                .expect_err("far above a batch size")
                .to_string()
                .contains("send_batch")
        );
    }
}
