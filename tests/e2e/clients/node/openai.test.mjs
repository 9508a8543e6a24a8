// The openai package for node.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CALLS, CHAT, ECHO, EMBEDDINGS, SCRIPTED, key, script, url } from "./place.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const asked = { model: CHAT, messages: [{ role: "user", content: "Where is the Colosseum?" }], temperature: 0, max_tokens: 40 };
const Place = z.object({ city: z.enum(["Rome", "Oslo"]), open: z.boolean() });
const weather = { city: z.enum(["Rome", "Oslo"]) };

test("a stream is the whole reply, and tells its usage", async () => {
  const short = { ...asked, model: ECHO, max_tokens: 5 };
  const whole = await client.chat.completions.create(short);
  const stream = await client.chat.completions.create({ ...short, stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "Where is the Colosseum? Where");
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
});

test("choices, logprobs and stops", async () => {
  const reply = await client.chat.completions.create({ ...asked, n: 2, logprobs: true, top_logprobs: 2, max_tokens: 3 });
  assert.equal(reply.choices.length, 2);
  assert.deepEqual(reply.choices[0].logprobs.content.map((token) => token.top_logprobs.length), [2, 2, 2]);
});

test("a parsed reply fits its schema, whole and streamed", async () => {
  const strict = { ...asked, response_format: zodResponseFormat(Place, "place") };
  const whole = await client.chat.completions.parse(strict);
  const streamed = await client.chat.completions.stream(strict).finalChatCompletion();
  for (const reply of [whole, streamed]) Place.parse(reply.choices[0].message.parsed);
});

test("a forced call is parsed, and its result is taken", async () => {
  const tool = zodFunction({ name: "weather", parameters: z.object(weather) });
  const reply = await client.chat.completions.parse({ ...asked, tools: [tool], tool_choice: "required", parallel_tool_calls: false });
  const [call, ...others] = reply.choices[0].message.tool_calls;
  assert.equal(others.length, 0);
  z.object(weather).parse(call.function.parsed_arguments);
  const messages = [...asked.messages, reply.choices[0].message, { role: "tool", tool_call_id: call.id, content: "cold" }];
  await client.chat.completions.create({ ...asked, messages, tools: [tool], max_tokens: 2 });
});

test("runTools calls the function, and asks again", async () => {
  const called = [];
  const tool = zodFunction({
    name: "weather",
    parameters: z.object(weather),
    function: (args) => { called.push(args.city); return JSON.stringify([{ text: "It is cold." }]); },
  });
  // The scripted model says what the last message tells it to: after the call that is the function's result.
  const runner = client.chat.completions.runTools({ model: SCRIPTED, messages: script(...CALLS), tools: [tool], stream: true });
  assert.equal(await runner.finalContent(), "It is cold.");
  assert.deepEqual(called, ["Rome"]);
});

test("a response is streamed, gone on with, and found again", async () => {
  const short = { model: ECHO, input: "Where is the Colosseum?", max_output_tokens: 5 };
  const whole = await client.responses.create(short);
  const stream = client.responses.stream(short);
  let text = "";
  stream.on("response.output_text.delta", (event) => { text += event.delta; });
  const streamed = await stream.finalResponse();
  assert.equal(text, "Where is the Colosseum? Where");
  assert.deepEqual([whole.output_text, streamed.output_text], [text, text]);
  const next = await client.responses.create({ ...short, input: "And now?", previous_response_id: whole.id });
  assert.equal(next.output_text, "And now? And now? And");
  const items = await client.responses.inputItems.list(next.id, { order: "asc" });
  assert.deepEqual(items.data.map((item) => item.role), ["user", "assistant", "user"]);
  assert.equal((await client.responses.retrieve(whole.id)).output_text, text);
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
});

test("a response in the background is followed from anywhere in it", async () => {
  const begun = await client.responses.create({ model: ECHO, input: "one two", max_output_tokens: 20, background: true });
  const numbers = [];
  for await (const event of await client.responses.retrieve(begun.id, { stream: true, starting_after: 3 })) numbers.push(event.sequence_number);
  assert.equal(numbers[0], 4);
  assert.deepEqual(numbers, numbers.map((_, place) => place + 4));
  assert.equal((await client.responses.retrieve(begun.id)).status, "incomplete");
});

test("a parsed response fits its schema", async () => {
  const input = asked.messages[0].content;
  const parsed = await client.responses.parse({ model: CHAT, input, temperature: 0, text: { format: zodTextFormat(Place, "place") } });
  Place.parse(parsed.output_parsed);
});

test("embeddings come as numbers", async () => {
  const { data } = await client.embeddings.create({ model: EMBEDDINGS, input: ["one", "two"] });
  const plain = await client.embeddings.create({ model: EMBEDDINGS, input: "one", encoding_format: "float" });
  assert.deepEqual(data.map((row) => row.embedding.length), [384, 384]);
  assert.ok(Math.abs(data[0].embedding[0] - plain.data[0].embedding[0]) < 1e-5);
});

test("errors are of the package's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ ...asked, model: "nobody" }), OpenAI.NotFoundError);
  const long = [{ role: "user", content: "word ".repeat(9000) }];
  await assert.rejects(
    client.chat.completions.create({ ...asked, model: ECHO, messages: long, stream: true }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded" && Boolean(error.requestID),
  );
  const stranger = new OpenAI({ baseURL: url, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("a stream that is left can be followed by another", async () => {
  const stream = await client.chat.completions.create({ ...asked, model: ECHO, max_tokens: 8000, stream: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  assert.ok(stream.controller.signal.aborted);
  await client.chat.completions.create({ ...asked, model: ECHO, max_tokens: 1 });
});
