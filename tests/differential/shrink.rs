//! From a sequence that fails to a short one that still does.

use std::time::{Duration, Instant};

use super::step::{Action, Cut, Step};

/// Leaves out steps, then commands, then words, then makes what is left plain, while `fails` says that it still fails.
pub fn shrink(steps: Vec<Step>, within: Duration, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let began = Instant::now();
    let mut best = steps;
    loop {
        let before = best.clone();
        let mut size = best.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < best.len() && began.elapsed() < within {
                let mut fewer = best.clone();
                fewer.drain(at..(at + size).min(best.len()));
                if !fewer.is_empty() && fails(&fewer) {
                    best = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        for at in 0..best.len() {
            let mut size = best[at].commands().len() / 2;
            while size > 0 {
                let mut from = 0;
                while from < best[at].commands().len() && best[at].commands().len() > 1 && began.elapsed() < within {
                    let mut fewer = best.clone();
                    if let Action::Commands(commands, _) = &mut fewer[at].action {
                        commands.drain(from..(from + size).min(commands.len()));
                        if commands.is_empty() {
                            break;
                        }
                    }
                    if fails(&fewer) {
                        best = fewer;
                    } else {
                        from += size;
                    }
                }
                size /= 2;
            }
            for number in 0..best[at].commands().len() {
                let mut word = 1;
                while word < best[at].commands()[number].len() && began.elapsed() < within {
                    let mut fewer = best.clone();
                    if let Action::Commands(commands, _) = &mut fewer[at].action {
                        commands[number].remove(word);
                    }
                    // What is left of it must not be what is never sent.
                    if super::left_out::reason(&fewer[at].commands()[number]).is_none() && fails(&fewer) {
                        best = fewer;
                    } else {
                        word += 1;
                    }
                }
            }
            let mut plain = best.clone();
            if let Action::Commands(_, cut @ (Cut::Bytes | Cut::Pieces)) = &mut plain[at].action
                && began.elapsed() < within
            {
                *cut = Cut::Whole;
                if fails(&plain) {
                    best = plain;
                }
            }
        }
        if best == before || began.elapsed() > within {
            return best;
        }
    }
}
