//! The twin's processes, threads and code.

use super::*;

impl Oracle {
    pub(super) fn running(&self, pid: u32) -> Option<usize> {
        self.processes.iter().position(|p| p.pid == pid && p.ended.is_none())
    }

    pub(super) fn process(&mut self, pid: u32) -> usize {
        self.running(pid).unwrap_or_else(|| {
            self.programs += 1;
            self.processes.push(OracleProcess {
                pid,
                parent: None,
                exe: vec![],
                started: self.now,
                ended: None,
                resident: None,
                program: self.programs,
                code: vec![None; CODE_BYTES],
            });
            self.processes.len() - 1
        })
    }

    pub(super) fn alive(&self, tid: u32) -> Option<usize> {
        self.threads.iter().position(|thread| thread.tid == tid && thread.alive)
    }

    pub(super) fn start_thread(&mut self, process: usize, tid: u32, name: Vec<u8>) -> usize {
        let pid = self.processes[process].pid;
        self.threads.push(OracleThread {
            tid,
            pid,
            name,
            process,
            alive: true,
            newest: Vec::new(),
            retired: None,
            released: None,
        });
        self.threads.len() - 1
    }

    pub(super) fn actor(&mut self, Tid(tid): Tid) -> Option<usize> {
        if let Some(thread) = self.alive(tid) {
            return Some(thread);
        }
        if let Some(process) = self.running(tid) {
            return Some(self.start_thread(process, tid, vec![]));
        }
        if self.processes.is_empty()
            && let Some(pid) = self.session
        {
            self.process(pid);
        }
        let running: Vec<_> =
            (0..self.processes.len()).filter(|&p| self.processes[p].ended.is_none()).collect();
        if let [process] = running[..] {
            self.count("threads_without_start");
            return Some(self.start_thread(process, tid, vec![]));
        }
        self.count("events_of_unknown_threads");
        None
    }

    pub(super) fn module_gone(&mut self, pid: u32, start: usize) {
        if let Some(p) = self.running(pid) {
            let code = &mut self.processes[p].code;
            let module = |code: &Vec<Option<Code>>, at: usize| {
                code.get(at).and_then(|code| code.as_ref()).map(|code| code.module)
            };
            let gone = module(code, start);
            if gone.is_some() && (start == 0 || module(code, start - 1) != gone) {
                for at in start..CODE_BYTES {
                    if module(code, at) != gone {
                        break;
                    }
                    code[at] = None;
                }
                return;
            }
        }
        self.count("orphan_module_ends");
    }

    pub(super) fn locate(&self, pid: u32, address: u64) -> Where {
        let code = self.running(pid).and_then(|p| self.processes[p].code.get(address as usize));
        match code {
            Some(Some(Code { image: Some(image), offset, .. })) => {
                Where::File(image.clone(), *offset)
            }
            Some(Some(Code { image: None, .. })) => Where::Anonymous(pid, address),
            _ => Where::Unknown(pid, address),
        }
    }

    pub(super) fn fork(&mut self, parent: u32, child: u32) {
        if let Some(c) = self.running(child) {
            let blocks = self.blocks.iter().any(|b| b.process == c && b.state == State::Held);
            let program = self.processes[c].program;
            let mapped = self
                .mappings
                .iter()
                .any(|m| m.process == c && m.program == program && !m.pages.is_empty());
            if blocks || mapped {
                self.count("missed_process_exits");
                self.exit(c);
            }
        }
        let c = self.process(child);
        self.processes[c].parent = Some(parent);
        let Some(p) = self.running(parent).filter(|&p| p != c) else {
            self.count("orphan_forks");
            return;
        };
        if self.processes[c].code.iter().all(Option::is_none) {
            self.processes[c].code = self.processes[p].code.clone();
        }
        self.programs += 1;
        let program = self.programs;
        self.processes[c].program = program;
        for i in 0..self.blocks.len() {
            let Block { process, state, address, size, ref key, api, thread, .. } = self.blocks[i];
            if process == p && state == State::Held {
                let key = key.clone();
                self.blocks.push(Block {
                    process: c,
                    program,
                    address,
                    size,
                    key,
                    api,
                    thread,
                    inherited: true,
                    temporary: false,
                    state: State::Held,
                });
            }
        }
        for i in 0..self.mappings.len() {
            let Mapping { process, ref key, api, counted, ref pages, abandoned, .. } =
                self.mappings[i];
            if process == p && !abandoned && !pages.is_empty() {
                let (key, pages) = (key.clone(), pages.clone());
                self.mappings.push(Mapping {
                    process: c,
                    program,
                    key,
                    api,
                    counted,
                    inherited: true,
                    size: pages.len() as u64,
                    pages,
                    abandoned: false,
                });
            }
        }
    }

    pub(super) fn end_program(&mut self, process: usize) {
        for block in &mut self.blocks {
            if block.process == process && block.state == State::Held {
                block.state = State::Abandoned;
            }
        }
        for mapping in &mut self.mappings {
            mapping.abandoned |= mapping.process == process;
        }
    }

    pub(super) fn exit(&mut self, process: usize) {
        self.end_program(process);
        self.processes[process].ended = Some(self.now);
        for thread in &mut self.threads {
            thread.alive &= thread.process != process;
        }
    }
}
