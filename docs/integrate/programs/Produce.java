import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Writes one payment: Produce BOOTSTRAP SCHEMAS. */
public final class Produce {
  public static void main(String[] arguments) throws Exception {
    Path folder = Path.of(arguments[1]);
    JsonNode payments = null;
    for (JsonNode entry : new ObjectMapper().readTree(folder.resolve("schemas.json").toFile())) {
      if (entry.get("file").asText().equals("payments.avsc")) {
        payments = entry;
      }
    }
    Schema schema = new Schema.Parser().parse(folder.resolve("payments.avsc").toFile());
    GenericRecord payment =
        new GenericRecordBuilder(schema)
            .set("payment_id", "from-java-1")
            .set("event_time_ms", System.currentTimeMillis())
            .set("card_id", "card-1")
            .set("merchant_id", "merchant-1")
            .set("amount_minor", 1050L)
            .set("currency", "EUR")
            .set("country", "DE")
            .set("channel", "ecom")
            .build();
    // Acknowledged by all replicas, idempotent, partitioned by murmur2: Java's client does so by itself.
    Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0], "compression.type", "gzip");
    try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
      byte[] value = encode(schema, payments.get("fingerprint").asInt(), payment);
      producer.send(new ProducerRecord<>(payments.get("topic").asText(), "card-1", value)).get();
    }
  }

  private static byte[] encode(Schema schema, int id, GenericRecord record) throws Exception {
    ByteArrayOutputStream value = new ByteArrayOutputStream();
    value.write(ByteBuffer.allocate(5).put((byte) 0).putInt(id).array());
    BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(value, null);
    new GenericDatumWriter<GenericRecord>(schema).write(record, encoder);
    encoder.flush();
    return value.toByteArray();
  }
}
