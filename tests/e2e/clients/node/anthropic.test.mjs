// Anthropic's package for node.
import assert from "node:assert/strict";
import test from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { CALLS, CHAT, ECHO, SCRIPTED, key, script, url } from "./place.mjs";

const client = new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: key, maxRetries: 0 });
const asked = { model: CHAT, max_tokens: 5, messages: [{ role: "user", content: "Say hello." }], system: [{ type: "text", text: "Be brief." }], top_k: 1 };
const tools = [{ name: "weather", input_schema: { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"] } }];

test("a stream is the whole message", async () => {
  const whole = await client.messages.create({ ...asked, model: ECHO });
  const streamed = await client.messages.stream({ ...asked, model: ECHO }).finalMessage();
  assert.equal(streamed.content[0].text, whole.content[0].text);
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens);
});

test("a call is forced and its arguments fit", async () => {
  const tool_choice = { type: "tool", name: "weather" };
  const message = await client.messages.create({ ...asked, max_tokens: 60, tools, tool_choice });
  assert.equal(message.stop_reason, "tool_use");
  assert.ok(["Rome", "Oslo"].includes(message.content[0].input.city));
});

test("pieces of a call are joined", async () => {
  const message = await client.messages.stream({ model: SCRIPTED, max_tokens: 9, messages: script(...CALLS), tools }).finalMessage();
  assert.deepEqual(message.content.map((block) => block.type), ["text", "tool_use"]);
  assert.deepEqual(message.content[1].input, { city: "Rome" });
});

test("tokens are counted", async () => {
  const { model, messages, system } = asked;
  const counted = await client.messages.countTokens({ model, messages, system });
  assert.equal(counted.input_tokens, (await client.messages.create({ ...asked, max_tokens: 1 })).usage.input_tokens);
});

test("errors are of the package's own classes", async () => {
  await assert.rejects(client.messages.create({ ...asked, model: "nobody" }), Anthropic.NotFoundError);
  const stranger = new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.messages.create(asked), Anthropic.AuthenticationError);
});
