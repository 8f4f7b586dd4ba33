use memtrace_userspace::live::{tracer::*, loader::*, launch, guardian};
use memtrace_userspace::record::*;
use std::time::{Duration, Instant};
fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args[0] == guardian::ARGUMENT { guardian::run(std::io::stdin().lock()); return; }
    let mut t = Tracer::new(Options{ capacity: Capacity{ring_bytes:1<<24,rows:4<<20,buckets:1<<21,modules:1<<16}, back_pressure: Duration::from_millis(200), program: Program::Trace, children: Children::Follow}).unwrap_or_else(|e| {eprintln!("{e}"); std::process::exit(2)});
    let child;
    if args[0] == "-p" { t.attach(Pid(args[1].to_str().unwrap().parse().unwrap())).unwrap(); child=None } else {
        let p = launch::prepare(&args).unwrap(); t.expect(p.pid).unwrap(); child = Some(p.go().unwrap());
    }
    let start=Instant::now(); let mut n=0usize; let mut ends=std::collections::BTreeMap::new(); let mut allocs=0u64; let mut frees=0u64; let mut bytes=0u64; let mut stacks=0;
    let verbose = std::env::var("V").is_ok();
    let mut seen = |r: Record| { n+=1; match &r { Record::Alloc{size,..}=>{allocs+=1;bytes+=size}, Record::Free{..}=>frees+=1, Record::Stack{end,frames,..}=>{stacks+=1; *ends.entry(*end).or_insert(0)+=1; if verbose || *end!=memtrace_common::unwind::End::Root {println!("{r:x?}")} ; let _=frames;}, Record::Tick{..}=>{}, r=>{ if verbose {println!("{r:x?}")}} } };
    let mut last=Instant::now();
    loop {
        t.drain(10000).unwrap();
        for r in t.records().drain(..) { seen(r) }
        if last.elapsed()>Duration::from_millis(100) { t.tick().unwrap(); last=Instant::now(); }
        if t.is_done() || start.elapsed()>Duration::from_secs(20) { break }
        t.wait(Duration::from_millis(5));
    }
    let e = Instant::now();
    let rest = t.finish(EndReason::TargetExited).unwrap();
    let mut counters=None;
    for r in rest { if let Record::Counters(c)=&r {counters=Some(c.clone())} seen(r) }
    println!("{n} records, {allocs} allocs {bytes} bytes, {frees} frees, {stacks} stacks {ends:?}, total {:?}, finish {:?}", start.elapsed(), e.elapsed());
    println!("{:?}", counters.unwrap().into_iter().filter(|c| c.1!=0).collect::<Vec<_>>());
    if let Some(c)=child { println!("{:?}", c.join().unwrap().map(|mut c| c.wait())); }
}
