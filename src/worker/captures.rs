//! Where a worker's captured packets go: [taps](Tap) fill chunks, and each tap has a channel to whoever looks.

use tokio::sync::mpsc::Sender;

use crate::path::capture::{Chunk, Tap};
use crate::proto::PeerId;

/// The channels of the captures that are on.
#[derive(Default)]
pub(super) struct Captures(Vec<(u64, Sender<(u8, Chunk)>)>);

impl Captures {
    pub(super) fn begin(&mut self, taps: &mut Vec<Tap>, tap: Tap, to: Sender<(u8, Chunk)>) {
        self.0.push((tap.number(), to));
        taps.push(tap);
    }

    pub(super) fn end(&mut self, taps: &mut Vec<Tap>, number: u64) {
        self.0.retain(|(other, _)| *other != number);
        taps.retain(|tap| tap.number() != number);
    }

    /// Ends the captures of a peer that is removed: the next one with its number is somebody else.
    pub(super) fn end_of(&mut self, worker: u8, taps: &mut Vec<Tap>, peer: PeerId) {
        if !taps.iter().any(|tap| tap.is_of(peer)) {
            return;
        }
        self.deliver(worker, taps);
        let ended: Vec<u64> = taps.iter().filter(|tap| tap.is_of(peer)).map(Tap::number).collect();
        for number in ended {
            self.end(taps, number);
        }
    }

    /// Ends all of them, and sends on what worker `worker` has captured.
    pub(super) fn end_all(&mut self, worker: u8, taps: &mut Vec<Tap>) {
        self.deliver(worker, taps);
        self.0.clear();
        taps.clear();
    }

    /// Sends on what worker `worker` has captured in this pass.
    pub(super) fn deliver(&self, worker: u8, taps: &mut [Tap]) {
        for (tap, (_, to)) in taps.iter_mut().zip(&self.0) {
            while let Some(chunk) = tap.take() {
                // There is room for every chunk. Whoever looked may have gone; then the tap's end is on its way.
                if let Err(refused) = to.try_send((worker, chunk)) {
                    tap.give_back(refused.into_inner().1);
                    break;
                }
            }
        }
    }
}

/// Gives a chunk back to its tap, unless that has ended.
pub(super) fn give_back(taps: &mut [Tap], number: u64, chunk: Chunk) {
    if let Some(tap) = taps.iter_mut().find(|tap| tap.number() == number) {
        tap.give_back(chunk);
    }
}
