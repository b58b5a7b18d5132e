//! Metrics as text: the Prometheus format (version 0.0.4) and OpenMetrics (1.0.0), which differ in little.
//!
//! Families are written one after the other, each with its help and type before its samples, as both formats want it.

use std::fmt::{Display, Write as _};

use super::buckets::Buckets;

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What every Prometheus reads.
    Prometheus,
    /// What newer ones ask for.
    OpenMetrics,
}

impl Format {
    /// The better one of those that an HTTP Accept header takes.
    pub fn accepted(accept: &str) -> Format {
        let takes = |part: &str| part.trim().starts_with("application/openmetrics-text");
        if accept.split(',').any(takes) {
            Format::OpenMetrics
        } else {
            Format::Prometheus
        }
    }

    /// The HTTP Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A text that grows by families.
#[derive(Debug)]
pub struct Exposition {
    out: String,
    format: Format,
}

/// One metric family, while its samples are written.
pub struct Family<'a> {
    exposition: &'a mut Exposition,
    name: &'a str,
    suffix: &'static str,
}

impl Exposition {
    /// An empty text.
    pub fn new(format: Format) -> Exposition {
        Exposition {
            out: String::with_capacity(16 * 1024),
            format,
        }
    }

    /// A number that only grows. `name` is without `_total`, which the samples have.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.head(name, "counter", "_total", help)
    }

    /// A number that goes up and down.
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.head(name, "gauge", "", help)
    }

    /// A distribution.
    pub fn histogram<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.head(name, "histogram", "", help)
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out += "# EOF\n";
        }
        self.out
    }

    fn head<'a>(&'a mut self, name: &'a str, kind: &str, suffix: &'static str, help: &str) -> Family<'a> {
        // The older format knows no families: its counters are called as their samples are.
        let shown = match self.format {
            Format::Prometheus => suffix,
            Format::OpenMetrics => "",
        };
        let help = escaped(help, false);
        // Writing to a String can't fail, here and below.
        let _ = writeln!(self.out, "# HELP {name}{shown} {help}\n# TYPE {name}{shown} {kind}");
        Family {
            exposition: self,
            name,
            suffix,
        }
    }
}

impl Family<'_> {
    /// A sample of a counter or gauge.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let (name, suffix) = (self.name, self.suffix);
        self.line(name, suffix, labels, None, &value);
        self
    }

    /// The samples of a histogram; its values are divided by `scale`, which makes seconds of nanoseconds.
    pub fn buckets(&mut self, labels: &[(&str, &str)], buckets: &Buckets, scale: f64) -> &mut Self {
        let name = self.name;
        for (bound, count) in buckets.cumulative() {
            let bound = bound as f64 / scale;
            // OpenMetrics wants bounds to be written as floating point numbers.
            let bound = if bound.fract() == 0.0 {
                format!("{bound:.1}")
            } else {
                bound.to_string()
            };
            self.line(name, "_bucket", labels, Some(&bound), &count);
        }
        self.line(name, "_bucket", labels, Some("+Inf"), &buckets.count());
        self.line(name, "_sum", labels, None, &(buckets.sum() as f64 / scale));
        self.line(name, "_count", labels, None, &buckets.count());
        self
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: &dyn Display) {
        let out = &mut self.exposition.out;
        let _ = write!(out, "{name}{suffix}");
        let bound = bound.map(|bound| ("le", bound));
        for (i, (label, text)) in labels.iter().copied().chain(bound).enumerate() {
            let _ = write!(
                out,
                "{}{label}=\"{}\"",
                if i == 0 { '{' } else { ',' },
                escaped(text, true)
            );
        }
        let _ = match labels.is_empty() && bound.is_none() {
            true => writeln!(out, " {value}"),
            false => writeln!(out, "}} {value}"),
        };
    }
}

/// A backslash, a line feed and, in label values, a quote have a backslash before them.
fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '"' if quotes => out += "\\\"",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::latency::Stage;

    fn text(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        exposition
            .counter("ringway_packets", "Inner packets.")
            .sample(&[("direction", "out"), ("peer", "a \"b\\\n")], 7u64)
            .sample(&[], 9u64);
        exposition.gauge("ringway_mtu_bytes", "The MTU.").sample(&[], 1420);
        let mut buckets = Buckets::new(Stage::SendBatch);
        buckets.record(3, 2);
        buckets.record(500, 1);
        exposition
            .histogram("ringway_batch_packets", "Sizes.")
            .buckets(&[("stage", "send")], &buckets, 1.0);
        exposition.finish()
    }

    #[test]
    fn both_formats_are_written_as_their_specifications_have_them() {
        let samples = "\
ringway_packets_total{direction=\"out\",peer=\"a \\\"b\\\\\\n\"} 7
ringway_packets_total 9
# HELP ringway_mtu_bytes The MTU.
# TYPE ringway_mtu_bytes gauge
ringway_mtu_bytes 1420
# HELP ringway_batch_packets Sizes.
# TYPE ringway_batch_packets histogram
ringway_batch_packets_bucket{stage=\"send\",le=\"1.0\"} 0
ringway_batch_packets_bucket{stage=\"send\",le=\"2.0\"} 0
ringway_batch_packets_bucket{stage=\"send\",le=\"4.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"8.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"16.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"32.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"64.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"128.0\"} 2
ringway_batch_packets_bucket{stage=\"send\",le=\"+Inf\"} 3
ringway_batch_packets_sum{stage=\"send\"} 506
ringway_batch_packets_count{stage=\"send\"} 3
";
        let prometheus = "# HELP ringway_packets_total Inner packets.\n# TYPE ringway_packets_total counter\n";
        assert_eq!(text(Format::Prometheus), format!("{prometheus}{samples}"));
        let open = "# HELP ringway_packets Inner packets.\n# TYPE ringway_packets counter\n";
        assert_eq!(text(Format::OpenMetrics), format!("{open}{samples}# EOF\n"));
    }

    #[test]
    fn times_are_seconds() {
        let mut exposition = Exposition::new(Format::Prometheus);
        let mut buckets = Buckets::new(Stage::Rtt);
        buckets.record(1_500_000, 1);
        exposition.histogram("x", "y").buckets(&[], &buckets, 1e9);
        let text = exposition.finish();
        for line in [
            "x_bucket{le=\"0.000005\"} 0\n",
            "x_bucket{le=\"0.0025\"} 1\n",
            "x_bucket{le=\"1.0\"} 1\n",
            "x_sum 0.0015\n",
            "x_count 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus_2), Format::OpenMetrics);
        for accept in ["", "*/*", "text/plain", "text/html, application/xml;q=0.9"] {
            assert_eq!(Format::accepted(accept), Format::Prometheus, "{accept}");
        }
    }
}
