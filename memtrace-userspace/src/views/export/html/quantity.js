"use strict";

// Bytes, counts and times, as every view of memtrace writes them (views/quantity.rs).

const scaled = (value, step, units, separator) => {
  let unit = -1;
  do {
    value /= step;
    unit += 1;
  } while (Math.round(value * 10) >= step * 10 && unit < units.length - 1);
  return value.toFixed(1) + separator + units[unit];
};

const SIZES = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const THOUSANDS = ["k", "M", "G", "T", "P", "E"];

function bytes(value) {
  if (value < 0) return "−" + bytes(-value);
  return value < 1024 ? `${Math.round(value)} B` : scaled(value, 1024, SIZES, " ");
}

function count(value) {
  if (value < 0) return "−" + count(-value);
  return value < 100000 ? exactly(value) : scaled(value, 1000, THOUSANDS, "");
}

/** All digits, in groups. */
function exactly(value) {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

function counted(value, thing) {
  return `${count(value)} ${thing}${value === 1 ? "" : "s"}`;
}

function duration(ns) {
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const seconds = ns / 1e9;
  if (seconds < 1) return `${Math.floor(ns / 1e6)} ms`;
  if (seconds < 60) return `${(Math.floor(seconds * 10) / 10).toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h${two((seconds % 3600) / 60)}m`;
  return `${Math.floor(seconds / 86400)}d${two((seconds % 86400) / 3600)}h`;
}

function share(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)}%` : "-";
}

