// Where the gateway is, and what its models are called.
export const url = process.env.CLIENTS_URL;
export const key = process.env.CLIENTS_KEY;
export const CHAT = "smollm2-135m";
export const EMBEDDINGS = "all-minilm-l6-v2";
export const ECHO = "echo"; // says the last message again and again
export const SCRIPTED = "scripted"; // says what the last message tells it to

// What to say to the scripted model for it to make these steps.
export const script = (...steps) => [{ role: "user", content: JSON.stringify(steps) }];
export const CALLS = [
  { text: "I look." },
  { tool_calls: [{ index: 0, name: "weather", arguments: '{"city"' }] },
  { tool_calls: [{ index: 0, arguments: ': "Rome"}' }] },
];
