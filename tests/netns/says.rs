//! What a text has to say.

/// Checks that `text` has all of these parts, and shows the one that is missing with the whole text.
#[track_caller]
pub(crate) fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}
