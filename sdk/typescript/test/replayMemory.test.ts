import assert from "node:assert/strict";
import { test } from "node:test";
import { ReplayMemory } from "@kkp/client";

test("what was used is refused until its end is over", () => {
  const memory = new ReplayMemory();
  assert.ok(memory.takes("a", 1060, 1000));
  assert.ok(!memory.takes("a", 1060, 1000));
  assert.ok(!memory.takes("a", 1061, 1001));
  assert.ok(!memory.takes("a", 1120, 1060));
  assert.ok(memory.takes("a", 1120, 1061));
});

test("others are taken meanwhile", () => {
  const memory = new ReplayMemory();
  assert.ok(memory.takes("a", 1060, 1000));
  assert.ok(memory.takes("b", 1060, 1000));
  assert.ok(!memory.takes("b", 1060, 1000));
});

test("without room nothing more is taken, and nothing forgotten, until something ends", () => {
  const memory = new ReplayMemory(2);
  assert.ok(memory.takes("a", 1060, 1000));
  assert.ok(memory.takes("b", 1061, 1000));
  assert.ok(!memory.takes("c", 1060, 1000));
  assert.ok(!memory.takes("a", 1060, 1060));
  assert.ok(memory.takes("c", 1100, 1060.25));
  assert.ok(!memory.takes("b", 1061, 1060.25));
});

test("there is room for 65,536", () => {
  const memory = new ReplayMemory();
  for (let i = 0; i < 65_536; i++) assert.ok(memory.takes(`${i}`, 1060 + (i % 60), 1000));
  assert.ok(!memory.takes("one more", 1060, 1000));
  assert.ok(memory.takes("one more", 2000, 1061));
});

test("where the clock is set back, what may have been used and forgotten is refused, and nothing else", () => {
  const memory = new ReplayMemory();
  assert.ok(memory.takes("a", 1060, 1000));
  assert.ok(memory.takes("b", 1200, 1130));
  assert.ok(!memory.takes("a", 1060, 1000));
  assert.ok(!memory.takes("c", 1129, 1070));
  assert.ok(memory.takes("c", 1130, 1070));
});
