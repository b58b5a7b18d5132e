//! x
use super::{Forged, KEY_LEN, NONCE_LEN, TAG_LEN, gcm512::Schedule, simd::Avx512};
pub(super) struct Key {
    token: Avx512,
    schedule: Box<Schedule>,
}
impl Key {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Key {
        let token = Avx512::detect().unwrap();
        let mut schedule = Box::new(Schedule::zeroed());
        token.gcm_expand(key, &mut schedule);
        Key { token, schedule }
    }
    #[inline]
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        self.token.gcm_seal(&self.schedule, nonce, aad, text, tag)
    }
    #[inline]
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = text.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
        if self.token.gcm_open(&self.schedule, nonce, aad, text, tag) {
            Ok(())
        } else {
            Err(Forged)
        }
    }
}
