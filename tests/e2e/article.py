"""The programs of article.txt as they stand there; only base_url and the model's name are arguments.

python -m tests.e2e.article call|stream|talk BASE_URL MODEL
"""

import sys
from typing import Dict, List, Optional  # noqa: UP035

from openai import OpenAI

_, program, base_url, model_name = sys.argv

client = OpenAI(
    base_url=base_url,
    api_key="none"
)  # fmt: skip


# 3.7
def call():
    response = client.chat.completions.create(
        model=model_name,
        messages=[
            {"role": "system", "content": "你是一个专业的AI助手。"},
            {"role": "user", "content": "FastChat 和 vLLM 的区别是什么?"}
        ],
        temperature=0.7,
        max_tokens=500
    )  # fmt: skip

    print(response.choices[0].message.content)


# 3.8
def chat_stream(model: str, messages: list, **kwargs):
    """
    流式对话,实时打印生成内容
    """
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            stream=True,  # 开启流式
            temperature=kwargs.get("temperature", 0.7),
            max_tokens=kwargs.get("max_tokens", 1024),
            top_p=kwargs.get("top_p", 0.9),
        )

        full_response = ""
        for chunk in stream:
            # 流式返回的每个 chunk 结构与 OpenAI 完全一致
            if chunk.choices[0].delta.content is not None:
                content = chunk.choices[0].delta.content
                print(content, end="", flush=True)
                full_response += content

        print()  # 换行
        return full_response

    except Exception as e:
        print(f"流式请求失败: {e}")
        raise


# 3.9
class ConversationManager:
    """
    多轮对话管理器
    支持对话记忆、上下文截断、会话重置
    """

    def __init__(
        self,
        model: str = "qwen2.5-7b",
        system_prompt: str = "你是一个专业的AI助手。",
        max_history_turns: int = 10,  # 保留最近 N 轮对话
    ):
        self.model = model
        self.max_history_turns = max_history_turns
        self.messages: List[Dict] = [  # noqa: UP006
            {"role": "system", "content": system_prompt}
        ]

    def _truncate_history(self):
        """保留 system prompt + 最近 N 轮(每轮包含 user + assistant 两条)"""
        system_msg = self.messages[0]
        history = self.messages[1:]

        # 每轮 = user + assistant = 2 条,保留最近 N 轮
        max_msgs = self.max_history_turns * 2
        if len(history) > max_msgs:
            history = history[-max_msgs:]

        self.messages = [system_msg] + history  # noqa: RUF005

    def chat(self, user_input: str, stream: bool = True) -> str:
        """发送消息并获取回复"""
        # 添加用户消息
        self.messages.append({"role": "user", "content": user_input})

        try:
            if stream:
                response_content = self._stream_response()
            else:
                response = client.chat.completions.create(
                    model=self.model,
                    messages=self.messages,
                    temperature=0.7,
                    max_tokens=1024
                )  # fmt: skip
                response_content = response.choices[0].message.content

            # 将 assistant 回复追加到历史
            self.messages.append({
                "role": "assistant",
                "content": response_content
            })  # fmt: skip

            # 截断超长历史
            self._truncate_history()

            return response_content

        except Exception as e:
            # 请求失败时移除刚添加的用户消息,避免污染历史
            self.messages.pop()
            raise RuntimeError(f"对话请求失败: {e}")  # noqa: B904

    def _stream_response(self) -> str:
        """流式响应内部实现"""
        stream = client.chat.completions.create(
            model=self.model,
            messages=self.messages,
            stream=True,
            temperature=0.7,
            max_tokens=1024
        )  # fmt: skip

        full_content = ""
        for chunk in stream:
            if chunk.choices[0].delta.content is not None:
                content = chunk.choices[0].delta.content
                print(content, end="", flush=True)
                full_content += content
        print()
        return full_content

    def reset(self, new_system_prompt: Optional[str] = None):  # noqa: UP045
        """重置会话(保留 system prompt)"""
        system_content = new_system_prompt or self.messages[0]["content"]
        self.messages = [{"role": "system", "content": system_content}]
        print("会话已重置。")

    def show_history(self):
        """打印当前对话历史"""
        for msg in self.messages:
            role = msg["role"].upper()
            content = msg["content"][:100] + "..." if len(msg["content"]) > 100 else msg["content"]
            print(f"[{role}]: {content}")


# 使用示例
def main():
    conv = ConversationManager(
        model=model_name,
        system_prompt="你是一个专业的Python工程师,回答简洁实用。",
        max_history_turns=8
    )  # fmt: skip

    print("多轮对话启动,输入 'quit' 退出,'reset' 重置会话,'history' 查看历史\n")

    while True:
        user_input = input("你: ").strip()

        if user_input.lower() == "quit":
            break
        elif user_input.lower() == "reset":
            conv.reset()
            continue
        elif user_input.lower() == "history":
            conv.show_history()
            continue
        elif not user_input:
            continue

        print("AI: ", end="")
        try:
            conv.chat(user_input)
        except RuntimeError as e:
            print(f"错误: {e}")

    print("对话结束。")


if __name__ == "__main__":
    if program == "call":
        call()
    elif program == "stream":
        messages = [
            {"role": "system", "content": "你是一个专业的Python工程师。"},
            {"role": "user", "content": "写一个简单的装饰器示例,并解释原理。"}
        ]  # fmt: skip
        response = chat_stream(model_name, messages)
    else:
        main()
